"""A Hugging Face hub on this machine: the few addresses that its library asks for models, accounts and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass
class Repo:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = True
    gated: bool = False

    @property
    def sha(self) -> str:
        digests = json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in sorted(self.files.items())})
        return hashlib.sha1(digests.encode()).hexdigest()


@dataclass
class Hub:
    """The repositories of the server and how it behaves."""

    repos: dict[str, Repo] = field(default_factory=dict)
    account: dict[str, Any] = field(
        default_factory=lambda: {"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": "write"}}}
    )
    token: str = "hf_known"
    hangs: str = ""
    """A regular expression of addresses that are never answered."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Regular expressions of addresses, and the status they are answered with."""
    asked: list[str] = field(default_factory=list)
    endpoint: str = ""

    def downloads(self) -> list[str]:
        return [line for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.split("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.hangs and re.search(self.hub.hangs, path):
            time.sleep(60)
        for pattern, status in self.hub.refuses.items():
            if re.search(pattern, path):
                return self.fail(status)
        logged_in = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if path == "/api/whoami-v2":
            return self.give(self.hub.account) if logged_in else self.fail(401)
        if path == "/api/validate-yaml":
            return self.give({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self.create(json.loads(body)) if logged_in else self.fail(401)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision|preupload|commit)/([^/]+))?", path):
            repo = self.hub.repos.get(match[1])
            if repo is None or (repo.private and not logged_in):
                return self.fail(404, "RepoNotFound")
            if repo.gated:
                return self.fail(403, "GatedRepo")
            if match[2] == "revision" and match[3] not in ("main", repo.sha):
                return self.fail(404, "RevisionNotFound")
            return {"tree": self.tree, "preupload": self.preupload, "commit": self.commit}.get(match[2], self.info)(
                match[1], repo, body
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            data = self.hub.repos[match[1]].files.get(match[3])
            if data is None:
                return self.fail(404, "EntryNotFound")
            return self.give(
                data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=self.hub.repos[match[1]].sha
            )
        return self.fail(404)

    do_HEAD = do_POST = do_GET

    def info(self, name: str, repo: Repo, _: bytes) -> None:
        files = [{"rfilename": path} for path in repo.files]
        self.give({"id": name, "modelId": name, "sha": repo.sha, "private": repo.private, "siblings": files})

    def tree(self, name: str, repo: Repo, _: bytes) -> None:
        self.give(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in repo.files.items()
            ]
        )

    def create(self, request: dict[str, Any]) -> None:
        name = f"{request.get('organization') or 'me'}/{request['name']}"
        if name in self.hub.repos:
            return self.give({"url": f"{self.hub.endpoint}/{name}", "error": "exists"}, 409)
        self.hub.repos[name] = Repo(private=request.get("visibility") == "private" or request.get("private") is True)
        return self.give({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def preupload(self, name: str, repo: Repo, body: bytes) -> None:
        files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
        self.give({"files": files})

    def commit(self, name: str, repo: Repo, body: bytes) -> None:
        for line in filter(None, body.decode().split("\n")):
            entry = json.loads(line)
            if entry["key"] == "file":
                repo.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                repo.files.pop(entry["value"]["path"])
        self.give(
            {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{repo.sha}", "commitOid": repo.sha, "success": True}
        )

    def fail(self, status: int, code: str = "") -> None:
        self.give({"error": "no"}, status, X_Error_Code=code, X_Error_Message="no")

    def give(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
