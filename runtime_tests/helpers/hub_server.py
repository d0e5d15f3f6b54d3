"""A model hub on this machine: an HTTP server that speaks the part of the hub's protocol that pull and push use.

Repositories lie in memory. Large files are served from `/cdn/` under another host name, as on the public hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM = 4096
"""Bytes from which a file is stored as a large file."""
_PART = 100_000
"""Bytes of one part of an upload. Larger files are sent in several."""
WRITER, READER = "hf_writer", "hf_reader"
"""The token that may do everything, and one that may only read public repositories."""


LICENSES = ["apache-2.0", "mit", "llama3.2", "other"]
"""Some of the licences that the hub accepts in a card."""


@dataclass
class Repository:
    """Branches and tags by name, and the files of every commit."""

    private: bool = False
    gated: bool = False
    heads: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Makes the branch hold these files, and returns the commit."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.heads[branch] = sha
        return sha

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """The branch's files."""
        return self.commits[self.heads[branch]]


@dataclass
class Request:
    """A request that the server answered."""

    method: str
    path: str
    range: str | None
    authorized: bool
    agent: str
    status: int = 0
    sent: int = 0


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: by `owner/name`.
        info_instead: what the server answers in the place of every description of a repository.
        served_instead: content that is served in the place of a file's own, by file name.
        pause_at: byte at which the server stops sending a file, by file name. It then sets `paused` and waits for
            `go_on`.
        cut_at: byte at which the server closes the connection, once, by file name.
        ignore_ranges: whether the server always sends whole files.
        refuse_uploads: whether the storage of large files refuses them.
        requests: every request so far.
        unknown: paths of requests that the server has no answer for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.info_instead: bytes | None = None
        self.served_instead: dict[str, bytes] = {}
        self.pause_at: dict[str, int] = {}
        self.cut_at: dict[str, int] = {}
        self.ignore_ranges = False
        self.paused, self.go_on = threading.Event(), threading.Event()
        self.refuse_uploads = False
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def repository(self, name: str, files: dict[str, bytes], **settings: bool) -> Repository:
        """Adds a repository with one commit."""
        self.repositories[name] = Repository(**settings)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def content_requests(self, name: str) -> list[Request]:
        """The requests that were answered with bytes of the file."""
        return [each for each in self.requests if each.path.endswith(f"/{name}") and each.status in (200, 206)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed closes its connection; that is no error."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A server, until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            hub.go_on.set()
            hub.shutdown()
            thread.join()


def lfs_files(files: dict[str, bytes]) -> set[str]:
    """The files that the hub stores as large files."""
    return {name for name, content in files.items() if len(content) >= LFS_FROM}


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self._read_body()
        path = unquote(urlsplit(self.path).path)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        self.entry = Request(self.command, path, self.headers["Range"], bool(token), self.headers["User-Agent"])
        self.server.requests.append(self.entry)
        try:
            if token not in {"", WRITER, READER}:
                raise _Refusal(401, message="Invalid credentials in Authorization header")
            self.token = token
            for method, pattern, handler in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method == self.command:
                    handler(self, *match.groups())
                    return
            self.server.unknown.append(path)
            raise _Refusal(404, message=f"no such endpoint: {self.command} {path}")
        except _Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(refusal.status, json.dumps({"error": refusal.message}).encode(), headers)

    def _read_body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.entry.status = status
        self.send_response(status)
        for key, value in (headers or {}).items():
            if value:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.entry.sent += len(content)

    def _send_json(self, value: object, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    # ---- reading

    def _repository(self, name: str) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.token != WRITER):
            # the public hub tells nobody but a user with a token whether a repository exists
            if not self.token:
                raise _Refusal(401, message="Invalid username or password.")
            raise _Refusal(404, "RepoNotFound", "Repository not found")
        return found

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repository.heads.get(revision, revision)
        if sha not in repository.commits:
            raise _Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def _info(self, name: str, revision: str | None) -> None:
        if self.server.info_instead is not None:
            self._send(200, self.server.info_instead, {"Content-Type": "application/json"})
            return
        repository = self._repository(name)
        sha, files = self._files(repository, revision or "main")
        siblings = []
        for path, content in files.items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
            if path in lfs_files(files):
                digest = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        self._send_json({"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository.gated and self.token != WRITER:
            raise _Refusal(403, "GatedRepo", "Access to this model is restricted")
        sha, files = self._files(repository, revision)
        if path not in files:
            raise _Refusal(404, "EntryNotFound", "Entry not found")
        content = files[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_git_hash(content)}"'}
        if path in lfs_files(files):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            headers["Location"] = f"http://localhost:{self.server.server_port}/cdn/{name}/{sha}/{path}"
            self._send(302, b"", headers)
        else:
            self._send_content(path, content, headers)

    def _cdn(self, name: str, sha: str, path: str) -> None:
        self._send_content(path, self.server.repositories[name].commits[sha][path], {})

    def _send_content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        content = self.server.served_instead.get(path, content)
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(match[1]) if match and not self.server.ignore_ranges else 0
        status = 206 if start else 200
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.entry.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        at, cut = self.server.pause_at.get(path), self.server.cut_at.pop(path, None)
        if cut is not None:
            self._write(content[start:cut])
            self.close_connection = True
        elif at is not None and at > start:
            self._write(content[start:at])
            self.server.paused.set()
            self.server.go_on.wait()
            self._write(content[at:])
        else:
            self._write(content[start:])

    def _write(self, content: bytes) -> None:
        self.wfile.write(content)
        self.wfile.flush()
        self.entry.sent += len(content)

    # ---- writing

    def _writable(self, name: str) -> Repository:
        repository = self._repository(name)
        if self.token != WRITER:
            raise _Refusal(403, message=f"You do not have write access to {name}")
        return repository

    def _create(self) -> None:
        if self.token != WRITER:
            raise _Refusal(403, message="You don't have the rights to create a model under this namespace")
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server.repositories:
            raise _Refusal(409, message="You already created this model repo")
        private = wanted.get("private") is True or wanted.get("visibility") == "private"
        self.server.repository(name, {".gitattributes": b"*.bin filter=lfs\n"}, private=private)
        self._send_json({"url": f"{self.server.url}/{name}", "name": name, "id": name})

    def _branch(self, name: str, branch: str) -> None:
        repository = self._writable(name)
        if branch in repository.heads:
            raise _Refusal(409, message="Reference already exists")
        repository.heads[branch] = repository.heads["main"]
        self._send_json({}, 201)

    def _validate(self) -> None:
        found = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        if found and found[1] not in LICENSES:
            message = f'"license" must be one of {LICENSES}'
            self._send_json({"errors": [{"message": message}], "warnings": [], "error": message}, 400)
        else:
            self._send_json({"errors": [], "warnings": []})

    def _preupload(self, name: str, revision: str) -> None:
        _, files = self._files(self._writable(name), revision)
        answer = []
        for wanted in json.loads(self.body)["files"]:
            path, large = wanted["path"], wanted["size"] >= LFS_FROM
            content = files.get(path)
            oid = None
            if content is not None:
                oid = hashlib.sha256(content).hexdigest() if path in lfs_files(files) else _git_hash(content)
            mode = "lfs" if large else "regular"
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send_json({"files": answer})

    def _batch(self, name: str) -> None:
        self._writable(name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            address = f"{self.server.url}/lfs/{wanted['oid']}"
            header = {}
            if wanted["size"] > _PART:
                parts = -(-wanted["size"] // _PART)
                header = {"chunk_size": str(_PART)} | {str(n): f"{address}/{n}" for n in range(1, parts + 1)}
            objects.append({**wanted, "actions": {"upload": {"href": address, "header": header}}})
        self._send_json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if self.server.refuse_uploads:
            raise _Refusal(403, message="the storage says no")
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, message="wrong hash")
        self.server.uploads[oid] = self.body
        self._send(200, b"")

    def _upload_part(self, oid: str, number: str) -> None:
        self.server.parts[oid, int(number)] = self.body
        self._send(200, b"", {"ETag": f'"{number}"'})

    def _join_parts(self, oid: str) -> None:
        numbers = [part["partNumber"] for part in json.loads(self.body)["parts"]]
        self.body = b"".join(self.server.parts.pop((oid, number)) for number in numbers)
        self._upload(oid)

    def _commit(self, name: str, revision: str) -> None:
        repository = self._writable(name)
        _, files = self._files(repository, revision)
        files = dict(files)
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        sha = repository.commit(files, revision)
        address = f"{self.server.url}/{name}/commit/{sha}"
        self._send_json({"success": True, "commitOid": sha, "commitUrl": address, "pullRequestUrl": None})


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", rf"/api/models/{_NAME}", lambda self, name: self._info(name, None)),
    ("GET", rf"/api/models/{_NAME}/revision/(.+)", _Handler._info),
    ("GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler._resolve),
    ("GET", rf"/cdn/{_NAME}/([^/]+)/(.+)", _Handler._cdn),
    ("POST", r"/api/repos/create", _Handler._create),
    ("POST", r"/api/validate-yaml", _Handler._validate),
    ("POST", rf"/api/models/{_NAME}/branch/(.+)", _Handler._branch),
    ("POST", rf"/api/models/{_NAME}/preupload/(.+)", _Handler._preupload),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", _Handler._upload),
    ("PUT", r"/lfs/([0-9a-f]{64})/([0-9]+)", _Handler._upload_part),
    ("POST", r"/lfs/([0-9a-f]{64})", _Handler._join_parts),
    ("POST", rf"/api/models/{_NAME}/commit/(.+)", _Handler._commit),
]
