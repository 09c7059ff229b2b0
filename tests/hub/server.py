"""A stand-in for the Hugging Face Hub on the loopback address, for its real client.

It answers the requests of ``huggingface_hub`` 1.3 and 2.x to a Hub without Xet: repositories, commits, the tree,
redirects to a store for large files, and Git LFS in one part or many. Private repositories need the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from .state import Fault, File, Gate, Repo

TOKEN = "hf_the-tests-own"
CHUNK_BYTES = 64 << 10


class Hub(Gate):
    """The stand-in. ``up`` and ``down`` count the content of large files, that of interrupted requests included."""

    def __init__(self, folder: Path, part_bytes: int = 4 << 20, large_bytes: int = 10_000_000) -> None:
        super().__init__()
        self.folder = folder
        self.part_bytes = part_bytes
        self.large_bytes = large_bytes
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, dict[int, str]] = {}
        self.faults: list[Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make the client use this Hub."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    @contextmanager
    def running(self) -> Iterator[Hub]:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            self.release()
            self._server.shutdown()
            self._server.server_close()

    def object(self, sha256: str) -> Path:
        return self.folder / sha256

    def fault(self, request: str) -> int | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.status
        return None


class Refused(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, *_: Any) -> None: ...

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        if (status := self.hub.fault(request)) == 0:
            self.close_connection = True
            self.connection.close()
            return
        try:
            if status is not None:
                raise Refused(status, message="told to fail")
            for pattern, handler in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    handler(self, *match.groups())
                    return
            raise Refused(404, message="no such address")
        except Refused as refused:
            self._drop_body()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            self._answer({"error": refused.message}, refused.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    # what a route needs

    def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _drop_body(self) -> None:
        if int(self.headers.get("content-length") or 0) or self.headers.get("transfer-encoding"):
            self.close_connection = True  # whatever was not read goes with the connection

    def _token(self) -> str | None:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ") or None

    def _writer(self) -> None:
        if (token := self._token()) is None:
            raise Refused(401, message="Invalid username or password.")
        if not token.startswith("hf_"):
            raise Refused(401, message="Invalid credentials in Authorization header")
        if token != TOKEN:
            raise Refused(403, message="you may not write here")

    def _repo(self, name: str) -> Repo:
        repo, token = self.hub.repos.get(name), self._token()
        if token is not None and not token.startswith("hf_"):
            raise Refused(401, message="Invalid credentials in Authorization header")
        if repo is None or (repo.private and token != TOKEN):
            # the Hub does not say whether a repository exists that one may not see
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit(self, name: str, revision: str) -> tuple[Repo, str]:
        repo = self._repo(name)
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return repo, commit

    # the routes

    def create(self) -> None:
        self._writer()
        asked = json.loads(self._body())
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repos:
            raise Refused(409, message="You already created this model repo")
        private = asked.get("visibility") == "private" or asked.get("private") is True  # 2.x says it, and 1.3, so
        repo = self.hub.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", size=25)})
        self._answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def branch(self, name: str, branch: str) -> None:
        self._writer()
        repo = self._repo(name)
        self._body()
        if branch in repo.branches:
            raise Refused(409, message="Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        self._answer({})

    def validate_yaml(self) -> None:
        self._body()
        self._answer({"warnings": [], "errors": []})

    def info(self, name: str, revision: str | None = None) -> None:
        repo, commit = self._commit(name, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        self._answer({"id": name, "modelId": name, "sha": commit, "private": repo.private, "siblings": siblings})

    def tree(self, name: str, revision: str) -> None:
        repo, commit = self._commit(name, revision)
        listed = []
        for path, file in sorted(repo.commits[commit].items()):
            record: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
            if file.sha256:
                record["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
            listed.append(record)
        self._answer(listed)

    def preupload(self, name: str, revision: str) -> None:
        self._writer()
        repo, commit = self._commit(name, revision)
        answered = []
        for each in json.loads(self._body())["files"]:
            known = repo.commits[commit].get(each["path"])
            large = each["size"] > self.hub.large_bytes or each["path"].endswith((".safetensors", ".bin"))
            oid = (known.sha256 or known.oid) if known else None
            mode = "lfs" if large else "regular"
            answered.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._answer({"files": answered})

    def batch(self, name: str) -> None:
        self._writer()
        self._repo(name)
        answered = []
        for each in json.loads(self._body())["objects"]:
            record = {"oid": each["oid"], "size": each["size"]}
            if not self.hub.object(each["oid"]).exists():
                record["actions"] = self._actions(name, each["oid"], each["size"])
            answered.append(record)
        self._answer({"transfer": "multipart", "objects": answered})

    def _actions(self, name: str, oid: str, size: int) -> dict[str, Any]:
        verify = {"href": f"{self.hub.url}/verify/{name}"}
        if size <= self.hub.part_bytes:
            return {"upload": {"href": f"{self.hub.url}/store/{oid}"}, "verify": verify}
        upload = secrets.token_hex(8)
        self.hub.uploads[upload] = {}
        count = -(-size // self.hub.part_bytes)
        parts = {f"{number:05d}": f"{self.hub.url}/store/{oid}/{upload}/{number}" for number in range(1, count + 1)}
        header = {"chunk_size": str(self.hub.part_bytes), **parts}
        return {"upload": {"href": f"{self.hub.url}/complete/{upload}", "header": header}, "verify": verify}

    def store(self, oid: str, upload: str | None = None, number: str | None = None) -> None:
        if upload is not None and upload not in self.hub.uploads:
            raise Refused(404, message="no such upload")
        target = self.hub.folder / (f"{upload}-{number}" if upload else oid)
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
        left, state = int(self.headers["content-length"]), hashlib.sha256()
        with partial.open("wb") as file:
            while left:
                chunk = self.rfile.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise ConnectionError
                left -= len(chunk)
                state.update(chunk)
                file.write(chunk)
                self.hub.passed(up=len(chunk))
        if upload is None and state.hexdigest() != oid:
            raise Refused(400, message="the content is not that of its name")
        partial.rename(target)
        etag = f'"{state.hexdigest()[:32]}"'
        if upload is not None:
            self.hub.uploads[upload][int(number or 0)] = etag
        self._answer(b"", headers={"ETag": etag})

    def complete(self, upload: str) -> None:
        asked = json.loads(self._body())
        parts = self.hub.uploads.get(upload)
        if parts is None:
            raise Refused(404, message="no such upload")
        if {each["partNumber"]: each["etag"] for each in asked["parts"]} != parts:
            raise Refused(400, message="InvalidPart")
        target = self.hub.object(asked["oid"])
        partial, state = target.with_name(f"{target.name}.partial"), hashlib.sha256()
        with partial.open("wb") as file:
            for number in sorted(parts):
                data = (self.hub.folder / f"{upload}-{number}").read_bytes()
                state.update(data)
                file.write(data)
        if state.hexdigest() != asked["oid"]:
            raise Refused(400, message="the content is not that of its name")
        partial.rename(target)
        del self.hub.uploads[upload]
        self._answer({"success": True})

    def verify(self, name: str) -> None:
        self._repo(name)
        asked = json.loads(self._body())
        path = self.hub.object(asked["oid"])
        if not path.exists() or path.stat().st_size != asked["size"]:
            raise Refused(422, message="not what was announced")
        self._answer({})

    def commit(self, name: str, branch: str) -> None:
        self._writer()
        repo, parent = self._commit(name, branch)
        files = dict(repo.commits[parent])
        for line in self._body().splitlines():
            record = json.loads(line)
            value = record["value"]
            if record["key"] == "header" and value.get("parentCommit", parent) != parent:
                raise Refused(412, message="A commit has happened since. Please refresh and try again.")
            if record["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(content, size=len(content))
            elif record["key"] == "lfsFile":
                path = self.hub.object(value["oid"])
                if not path.exists():
                    raise Refused(400, message=f"no content for {value['path']}")
                files[value["path"]] = File(sha256=value["oid"], size=path.stat().st_size)
            elif record["key"] == "deletedFile":
                files.pop(value["path"], None)
        commit = repo.commit(branch, files)
        self._answer({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo, commit = self._commit(name, revision)
        file = repo.commits[commit].get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.sha256 or file.oid}"', "Accept-Ranges": "bytes"}
        if file.sha256:
            # to another name of this machine: a client must not carry the token there
            location = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{file.sha256}"
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "Location": location}
            self._answer(b"", 302, {**headers, **linked})
            return
        self._answer(file.content, headers=headers)

    def cdn(self, sha256: str) -> None:
        if self._token() is not None:
            raise Refused(400, message="the token has left the Hub")
        size = self.hub.object(sha256).stat().st_size
        start, end, status = 0, size - 1, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or ""):
            start, end, status = int(wanted[1]), min(int(wanted[2] or end), end), 206
        self.send_response(status)
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        with self.hub.object(sha256).open("rb") as file:
            file.seek(start)
            left = end - start + 1
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                left -= len(chunk)
                self.hub.passed(down=len(chunk))
                self.wfile.write(chunk)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: tuple[tuple[str, Callable[..., None]], ...] = (
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate_yaml),
    (rf"POST /api/models/{_NAME}/branch/(.+)", Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /api/models/{_NAME}/commit/(.+)", Handler.commit),
    (rf"GET /api/models/{_NAME}/revision/(.+)", Handler.info),
    (rf"GET /api/models/{_NAME}/tree/(.+)", Handler.tree),
    (rf"GET /api/models/{_NAME}", Handler.info),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /store/(\w+)", Handler.store),
    (r"PUT /store/(\w+)/(\w+)/(\d+)", Handler.store),
    (r"POST /complete/(\w+)", Handler.complete),
    (rf"POST /verify/{_NAME}", Handler.verify),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (r"(?:GET|HEAD) /cdn/(\w+)", Handler.cdn),
)
