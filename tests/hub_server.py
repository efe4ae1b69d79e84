"""A stand-in for the Hugging Face hub: the part of its HTTP API that huggingface_hub uses in a push or pull.

* ``Hub`` - the server, in a thread of this process; its repositories are in memory
* ``Fault`` - what goes wrong at a request

As on the hub, large binary files are uploaded beside the commit (Git LFS), and served from another host.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"
"""The tokens: of a user who may write, and of one who may only read."""


@dataclass
class Fault:
    """What goes wrong at a request.

    Args:
        request: A pattern of ``METHOD path``.
        status: The status of the answer. None: the answer stops after some bytes of its content.
        times: How often.
        stalls: Whether an answer that stops stays open.
    """

    request: str
    status: int | None = None
    times: int = 1
    stalls: bool = False


@dataclass
class Repository:
    """Commits, the newest last: hash -> files by name."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b"*.pt filter=lfs\n"})

    def commit(self, files: dict[str, bytes]) -> str:
        """Adds a commit that adds or replaces files. Returns its hash."""
        kept = {**self.files(), **files} if self.commits else files
        name = hashlib.sha1(f"{len(self.commits)} {sorted(kept)}".encode(), usedforsecurity=False).hexdigest()
        self.commits[name] = kept
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a commit. Raises KeyError if there is no such commit."""
        return self.commits[self.hash(revision)]

    def hash(self, revision: str = "main") -> str:
        """The hash of a commit."""
        return list(self.commits)[-1] if revision == "main" else revision


class Hub:
    """The server. Use it in a ``with`` statement.

    Attributes:
        repositories: Name -> repository.
        requests: ``METHOD path`` of each request so far.
        faults: What goes wrong.
        sizes: File -> a wrong size that the hub says it has.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.tokens: list[str] = []  # that the host of large files has got
        self.faults: list[Fault] = []
        self.sizes: dict[str, int | None] = {}
        self.large: dict[str, bytes] = {}
        handler = type("Bound", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.other_host = f"http://localhost:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self._body = self._read()
        self._fault = next((fault for fault in self.hub.faults if re.search(fault.request, request)), None)
        if self._fault:
            self._fault.times -= 1
            if not self._fault.times:
                self.hub.faults.remove(self._fault)
        try:
            if self._fault and self._fault.status:
                raise _RefusedError(self._fault.status)
            for pattern, answer in _ROUTES.items():
                if match := re.fullmatch(pattern, request):
                    return answer(self, *match.groups())
            raise _RefusedError(404)
        except _RefusedError as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            content = json.dumps({"error": refused.message}).encode()
            self._send(content, refused.status, {name: value for name, value in headers.items() if value})
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault and self._fault.status is None:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            while self._fault.stalls:
                time.sleep(0.02)
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(2)
            return
        self.wfile.write(content)

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _check_token(self, writes: bool = False) -> None:
        if self._token() not in (WRITER, READER, *([] if writes else [""])):
            raise _RefusedError(401, message="Invalid credentials in Authorization header")
        if writes and self._token() != WRITER:
            raise _RefusedError(403, message="you don't have the rights")

    def _repository(self, name: str, writes: bool = False) -> Repository:
        self._check_token(writes)
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._token()):
            raise _RefusedError(404 if self._token() else 401, "RepoNotFound")
        return repository

    def _create(self) -> None:
        self._check_token(writes=True)
        wanted = json.loads(self._body)
        name = f"{wanted['organization']}/{wanted['name']}"
        private = wanted.get("private") or wanted.get("visibility") == "private"
        status = 409 if name in self.hub.repositories else 200
        self.hub.repositories.setdefault(name, Repository(bool(private)))
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, status)

    def _validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _info(self, name: str, revision: str | None) -> None:
        repository = self._repository(name)
        revision = revision or "main"
        if repository.hash(revision) not in repository.commits:
            raise _RefusedError(404, "RevisionNotFound")
        files = repository.files(revision)
        siblings = [{"rfilename": file, "size": self.hub.sizes.get(file, len(files[file]))} for file in files]
        content = {"id": name, "sha": repository.hash(revision), "private": repository.private, "siblings": siblings}
        self._json(content)

    def _preupload(self, name: str) -> None:
        self._repository(name, writes=True)
        files = json.loads(self._body)["files"]
        modes = [{"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False} for file in files]
        self._json({"files": modes})

    def _batch(self, name: str) -> None:
        self._repository(name, writes=True)
        objects = []
        for each in json.loads(self._body)["objects"]:
            place = {"href": f"{self.hub.other_host}/large/{each['oid']}"}
            verify = {"href": f"{self.hub.url}/verify/{each['oid']}"}
            actions = {} if each["oid"] in self.hub.large else {"actions": {"upload": place, "verify": verify}}
            objects.append({"oid": each["oid"], "size": each["size"], **actions})
        self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        self.hub.tokens.append(self._token())
        assert hashlib.sha256(self._body).hexdigest() == oid
        self.hub.large[oid] = self._body
        self._send(b"")

    def _verify(self, oid: str) -> None:
        self._json({}, 200 if oid in self.hub.large else 404)

    def _commit(self, name: str) -> None:
        repository = self._repository(name, writes=True)
        lines = [json.loads(line) for line in self._body.splitlines()]
        assert lines[0]["key"] == "header"
        files = {}
        for line in lines[1:]:
            value = line["value"]
            large = line["key"] == "lfsFile"
            files[value["path"]] = self.hub.large[value["oid"]] if large else base64.b64decode(value["content"])
        commit = repository.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True})

    def _file(self, name: str, revision: str, file: str) -> None:
        repository = self._repository(name)
        try:
            content = repository.files(revision)[file]
        except KeyError:
            raise _RefusedError(404, "EntryNotFound") from None
        oid = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": repository.hash(revision), "ETag": f'"{oid}"'}
        if _mode(file) == "regular":
            return self._part(content, headers)
        self.hub.large[oid] = content
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{oid}"'}
        self._send(b"", 302, headers | {"Location": f"{self.hub.other_host}/large/{oid}"})

    def _large(self, oid: str) -> None:
        self.hub.tokens.append(self._token())
        self._part(self.hub.large[oid], {})

    def _part(self, content: bytes, headers: dict[str, str]) -> None:
        """Sends a file, or the rest of it, when a download goes on."""
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            first, size = int(match[1]), len(content)
            headers = {**headers, "Content-Range": f"bytes {first}-{size - 1}/{size}"}
            return self._send(content[first:], 206, headers)
        self._send(content, 200, headers)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".pt") else "regular"


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Callable[..., None]] = {
    "POST /api/validate-yaml": _Handler._validate,
    "POST /api/repos/create": _Handler._create,
    f"GET /api/models/{_NAME}(?:/revision/(.+))?": _Handler._info,
    f"POST /api/models/{_NAME}/preupload/main": _Handler._preupload,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler._batch,
    "PUT /large/(.+)": _Handler._store,
    "GET /large/(.+)": _Handler._large,
    "POST /verify/(.+)": _Handler._verify,
    f"POST /api/models/{_NAME}/commit/main": _Handler._commit,
    f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler._file,
}
