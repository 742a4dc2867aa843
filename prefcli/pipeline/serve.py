"""``serve``: runs behind HTTP, until a signal comes."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefcli.errors import InputError, PrefcliError, require
from prefcli.options import ServeOptions
from prefcli.pipeline.predict import describe_unseen, find_runs
from prefcli.reporting import SILENT, Reporter
from prefcli.storage.workspace import Workspace

TOKEN_VARIABLE = "PREFCLI_TOKEN"
MIN_TOKEN = 16
"""Characters: fewer can be guessed."""
HOW_TO_TOKEN = "Make one: openssl rand -hex 32 > token.txt; then --token-file token.txt."


@dataclass(frozen=True)
class Serving:
    """Where runs are served."""

    url: str
    host: str
    port: int
    pid: int
    models: tuple[str, ...]


def serve(
    workspace: Workspace,
    options: ServeOptions,
    *,
    ready: Callable[[Serving], None] = lambda serving: None,
    reporter: Reporter = SILENT,
) -> None:
    """Answer HTTP requests until SIGINT or SIGTERM comes, then those that were accepted.

    Parameters
    ----------
    workspace, options:
        Where runs are found; which, how they predict, address and limits.
    ready:
        Called once when requests are answered, with the address; with ``port`` 0 that says which port it is.
    reporter:
        Gets notes about the runs, and a warning when a request fails for a reason that is not in it.

    Raises
    ------
    InputError
        If an option is not valid, there is no such run, or a token is needed.
    ModelError
        If a run cannot be loaded.
    MissingPackage
        If FastAPI or uvicorn is not installed.
    PrefcliError
        If the address cannot be used.
    """
    options.check()
    require("prefcli serve", "fastapi", "uvicorn", "prometheus_client")
    token = read_token(options.token_file)
    address = _resolve(options.host, options.port)
    is_loopback = ipaddress.ip_address(address[1][0]).is_loopback
    if not is_loopback and token is None:
        raise InputError(f"--host {options.host} lets other machines ask: that needs a token", hint=HOW_TO_TOKEN)
    with _bind(address, options) as listening:
        from prefcli.prediction.predictor import Predictor
        from prefcli.serving import server
        from prefcli.serving.app import create_app
        from prefcli.serving.guard import LOOPBACK_NAMES

        folders = find_runs(workspace, options.models, reporter)
        predictor = Predictor(folders, options)
        describe_unseen(folders, predictor.names, reporter, as_source=options.as_source)
        host_names = (*LOOPBACK_NAMES, options.host) if is_loopback else ()
        app = create_app(predictor, options, token=token, host_names=host_names, reporter=reporter)
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        serving = Serving(url, host, port, os.getpid(), tuple(predictor.names))
        try:
            listening.listen()
        except OSError as error:
            raise _cannot_listen(options, error) from None
        server.run(app, listening, options, lambda: ready(serving))


def read_token(path: str | None) -> str | None:
    """The token that requests must send: from a file, else from :data:`TOKEN_VARIABLE`, else none.

    It is no flag: a process's command line can be seen by others.

    Raises
    ------
    InputError
        If it cannot be read, is short, or cannot be sent in a header.
    """
    token, where = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
    if path is not None:
        try:
            token, where = Path(path).expanduser().read_text(encoding="utf-8"), path
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the token: {getattr(error, 'strerror', 'not text')}", where=path) from None
    if token is None:
        return None
    token = token.strip()
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        what = f"the token is not {MIN_TOKEN} or more ASCII characters without spaces"
        raise InputError(what, where=where, hint=HOW_TO_TOKEN)
    return token


Address = tuple[int, tuple[str, int]]


def _resolve(host: str, port: int) -> Address:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError(f"--host {host!r} is no address of this machine") from None
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, (str(address[0]), port)


def _bind(address: Address, options: ServeOptions) -> socket.socket:
    """A socket that holds the address; it listens once the runs are loaded."""
    listening = socket.socket(address[0], socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address[1])
    except OSError as error:
        listening.close()
        raise _cannot_listen(options, error) from None
    return listening


def _cannot_listen(options: ServeOptions, error: OSError) -> PrefcliError:
    return PrefcliError(
        f"cannot listen on {options.host}, port {options.port}: {(error.strerror or str(error)).lower()}",
        hint="Choose another --port; 0 takes a free one.",
    )
