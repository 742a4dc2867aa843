"""uvicorn, with what it lacks: clients that are too slow are cut off, and two signals that stop it in two ways."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefcli.options import ServeOptions
from prefcli.serving.guard import HEADERS, Refused, busy, error_body

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 5.0
"""Beyond the time that a request may take."""
SWITCH_SECONDS = 0.0005
"""How long the thread that computes may keep Python's lock while others want it. With Python's 5 ms, the thread that
sends answers waits as long after every single one."""


def run(app: Any, listening: socket.socket, options: ServeOptions, ready: Callable[[], None]) -> None:
    """Serve until a signal comes, then answer what was accepted.

    Parameters
    ----------
    app:
        The application.
    listening:
        A socket that listens.
    options:
        Limits.
    ready:
        Called when requests are answered.
    """
    protocol = type("Protocol", (_Protocol,), {"options": options})
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="on", log_config=None, log_level="critical", access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=max(1, round(options.header_timeout)),
        timeout_graceful_shutdown=round(options.timeout + GRACE_SECONDS),
    )  # fmt: skip
    server = _Server(config)
    server.ready = ready
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        asyncio.run(server.serve([listening]))
    finally:
        sys.setswitchinterval(usual)


class _Server(uvicorn.Server):
    ready: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first signal stops the server, the second one ends the process; uvicorn would raise the first again."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, number: int, frame: Any) -> None:
        if self.should_exit:
            os._exit(128 + number)
        self.should_exit = True


class _Protocol(H11Protocol):
    """A connection. uvicorn waits for the head of a request as long as bytes drip in, or none at all."""

    options: ServeOptions
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.options.max_connections:
            self._respond(busy(503, "too many connections are open", 1))
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """More of the answers waits to be sent than the client reads."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.options.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        if self._unread is not None:
            self._unread.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The answer to what is no HTTP; uvicorn's is plain text without the headers of all other answers."""
        self._respond(Refused(400, "this is not a valid HTTP request"))

    def _respond(self, error: HTTPException) -> None:
        body = error_body(error)
        headers = {**HEADERS, **(error.headers or {}), "content-type": "application/json", "connection": "close"}
        headers["content-length"] = str(len(body))
        with contextlib.suppress(h11.LocalProtocolError):  # the answer to the request before was not complete
            for event in (
                h11.Response(status_code=error.status_code, headers=[*headers.items()]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        """While no request is being answered, the time runs."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.options.header_timeout, self._end)

    def _end(self) -> None:
        """Close, and wait no longer than a request may take for the client to read what was sent."""
        self.transport.close()
        self._deadline = self.loop.call_later(self.options.timeout, self.transport.abort)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
