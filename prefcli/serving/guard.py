"""What every request passes before the application sees it: limits, the token, headers; and what is said of failures.

No text of a request is ever logged: an unexpected error is reported by its type and place alone.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import traceback
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import Response

from prefcli.errors import PrefcliError, is_out_of_memory
from prefcli.storage.files import to_json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from prefcli.options import ServeOptions
    from prefcli.reporting import Reporter
    from prefcli.serving.monitoring import Monitor

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""Need no token, nor do files of the page."""
STATIC = "/static/"
MAX_BODIES = 16
"""Bodies of the largest size that are in memory at a time; requests above it are refused."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Refused(HTTPException):
    """A request that is answered with an error."""

    def __init__(self, status: int, what: str, hint: str = "", *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, what, dict(headers or {}))
        self.hint = hint


def busy(status: int, what: str, seconds: int, hint: str = "") -> Refused:
    """A request that may succeed later."""
    return Refused(status, what, hint or f"Try again in {seconds} s.", headers={"retry-after": str(seconds)})


def error_body(error: HTTPException) -> bytes:
    """An error as JSON."""
    return to_json({"error": error.detail, "hint": getattr(error, "hint", "")}).encode()


def error_response(error: HTTPException) -> Response:
    """The response that says what was wrong."""
    return Response(error_body(error), error.status_code, error.headers, "application/json")


class Guard:
    """ASGI middleware around the application.

    Parameters
    ----------
    app:
        The application.
    options:
        Limits.
    token:
        What requests must send; None: nothing.
    host_names:
        Names that requests may give to this host; none: any. A page elsewhere whose name was made to point to this
        machine (DNS rebinding) gives another.
    monitor, reporter:
        Where requests are counted and failures reported.
    paths:
        The application's paths: others are counted together.
    """

    def __init__(
        self, app: ASGIApp, *, options: ServeOptions, token: str | None, host_names: Collection[str],
        monitor: Monitor, reporter: Reporter, paths: Collection[str],
    ) -> None:  # fmt: skip
        self.app = app
        self._max_body = round(options.max_body_mb * 2**20)
        self._timeout = options.timeout
        self._bytes = 0
        self._token = None if token is None else _digest(token.encode())
        self._host_names = frozenset(map(str.lower, host_names))
        self._monitor, self._reporter = monitor, reporter
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, always."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        is_head = scope["method"] == "HEAD"  # answered as GET, without the body
        if is_head:
            scope = {**scope, "method": "GET"}
        body = _Body(receive, self)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                own = ((name.encode(), value.encode()) for name, value in HEADERS.items())
                message["headers"] = [*message["headers"], *(header for header in own if header[0] not in names)]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            self._check(scope)
            with anyio.fail_after(self._timeout):
                await self.app(scope, body.receive, send_with_headers)
        except Exception as error:
            if status:  # the response has begun, and cannot become another one
                raise
            await error_response(self._refusal(error, body))(scope, receive, send_with_headers)
        finally:
            self._bytes -= body.bytes
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._monitor.observe_request(path, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        headers = _Headers(scope)
        if self._host_names and headers.host not in self._host_names:
            raise Refused(400, "this is not the host that the request names", "Ask for http://localhost.")
        path = scope["path"]
        is_open = path in OPEN_PATHS or path.startswith(STATIC)
        if self._token is not None and not is_open and not hmac.compare_digest(self._token, _digest(headers.token)):
            raise Refused(
                401, "a token is needed", "Send it as a header: Authorization: Bearer TOKEN.",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        if scope["method"] == "POST" and path in self._paths:
            if headers.content_type != b"application/json":
                raise Refused(415, "the body is not JSON", "Send it with the header Content-Type: application/json.")
            if headers.content_length > self._max_body:
                raise _too_large(self._max_body)

    def count(self, body: _Body, more: int) -> None:
        """Count bytes that arrived, and refuse a body that is too large, or one too many."""
        body.bytes += more
        self._bytes += more
        if body.bytes > self._max_body:
            raise _too_large(self._max_body)
        if self._bytes > MAX_BODIES * self._max_body:
            raise busy(429, "too much is sent at a time", 5)

    def _refusal(self, error: Exception, body: _Body) -> HTTPException:
        """What is said of an exception."""
        if isinstance(error, HTTPException):
            return error
        if isinstance(error, PrefcliError):  # strengths that do not converge, and the like
            return Refused(422, error.what, error.hint)
        if isinstance(error, TimeoutError) and not body.complete:
            return Refused(408, f"the body did not arrive within {self._timeout:g} s")
        if isinstance(error, TimeoutError):
            return busy(503, f"no answer within {self._timeout:g} s", 5, "Send less at a time, or try again later.")
        if is_out_of_memory(error):
            self._reporter.warn("out of memory: a request was refused")
            return busy(503, "out of memory", 5, "Send less at a time, or try again later.")
        place = traceback.extract_tb(error.__traceback__)[-1]
        self._reporter.warn(f"unexpected {type(error).__name__} in {place.filename}, line {place.lineno}")
        return Refused(500, "internal error", "This is a bug in prefcli: its standard error says where.")


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, receive: Receive, guard: Guard) -> None:
        self._receive, self._guard = receive, guard
        self.bytes = 0
        self.complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.complete = not message.get("more_body", False)
            self._guard.count(self, len(message.get("body", b"")))
        return message


class _Headers:
    """The headers that decide whether a request is answered."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name, []).append(value)

    def _only(self, name: bytes) -> bytes:
        values = self._values.get(name, ())
        return values[0] if len(values) == 1 else b""

    @property
    def host(self) -> str:
        """Without its port."""
        host = self._only(b"host").decode("latin-1").lower()
        name, colon, port = host.rpartition(":")
        return name if colon and port.isdecimal() else host

    @property
    def token(self) -> bytes:
        scheme, _, token = self._only(b"authorization").partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else b""

    @property
    def content_type(self) -> bytes:
        return self._only(b"content-type").partition(b";")[0].strip().lower()

    @property
    def content_length(self) -> int:
        length = self._only(b"content-length")
        return int(length) if length.isdigit() and len(length) < 20 else 0


def _digest(token: bytes) -> bytes:
    """Of equal length for all tokens, so that comparing them takes equal time."""
    return hashlib.sha256(token).digest()


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, f"the body is larger than {max_bytes / 2**20:g} MiB", "Send fewer battles in a request.")
