"""A hub for tests, in this process: the few endpoints of huggingface.co that vwm reads and writes, and its faults."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

LARGE = 10_000
"""Bytes from which this hub stores a file as a large one."""
WRITER, READER, REVOKED = "hf_writerwriterwriter", "hf_readerreaderreader", "hf_revokedrevokedrevoked"
SIGNATURE = "X-Amz-Signature=0123456789abcdef"


@dataclass
class Repository:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        """Make a commit of all files of a branch, and return its hash."""
        self.messages.append(message)
        text = json.dumps([len(self.commits), sorted((p, hashlib.sha1(c).hexdigest()) for p, c in files.items())])
        made = hashlib.sha1(text.encode()).hexdigest()
        self.commits[made] = dict(files)
        self.branches[branch] = made
        return made

    def find(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The hub as tests see it.

    Attributes:
        address: what HF_ENDPOINT is set to.
        repositories: by name.
        objects: large files, by SHA-256.
        requests: (method, path, headers) of all requests so far.
        cut: bytes after which the connection breaks, the next ``cuts`` times that a large file is read.
        down: answer 503 where large files are read.
        corrupt: paths whose content differs from the listing.
        missing: paths that are listed and not given.
        listed: paths that are listed in addition.
        refusal: status and error code with which every request is answered.
        web_page: answer every request with a web page, as some networks do.
    """

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cut: int = 0
    cuts: int = 0
    down: bool = False
    corrupt: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    listed: list[str] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    web_page: bool = False

    def add(self, name: str, files: dict[str, bytes], branch: str = "main") -> Repository:
        """Commit files to a repository, which is made where it is missing."""
        repository = self.repositories.setdefault(name, Repository())
        repository.commit(branch, files)
        self.objects |= {sha256(content): content for content in files.values() if len(content) >= LARGE}
        return repository

    def read_files(self) -> list[str]:
        """Return the paths of the files whose content was asked for, in order of their names."""
        asked = (urlsplit(path).path for method, path, _ in self.requests if method == "GET")
        found = (re.fullmatch(r"/cdn/[^/]+/(.+)|/[^/]+/[^/]+/resolve/[^/]+/(.+)", path) for path in asked)
        return sorted({matched[1] or matched[2] for matched in found if matched})

    def ranges(self) -> list[str]:
        """Return the parts of large files that were asked for."""
        return [headers["range"] for _, path, headers in self.requests if "/cdn/" in path and "range" in headers]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.message = status, code, message


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        body = self._read_body()
        named = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, named))
        path = unquote(urlsplit(self.path).path)
        if self.hub.web_page:
            self._send(200, b"<html>Accept our terms</html>", {"Content-Type": "text/html"})
            return
        try:
            if self.hub.refusal is not None:
                raise _Refused(*self.hub.refusal)
            for pattern, answer in _ROUTES:
                if matched := re.fullmatch(pattern, f"{self.command} {path}"):
                    getattr(self, answer)(*matched.groups(), **({"body": body} if body else {}))
                    return
            raise _Refused(404, message=f"no endpoint {self.command} {path}")
        except _Refused as refused:
            said = json.dumps({"error": refused.message}).encode()
            self._send(refused.status, said, {"X-Error-Code": refused.code, "X-Error-Message": refused.message})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # who may do what

    def _token(self) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", WRITER, READER):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return token

    def _check_writer(self) -> None:
        token = self._token()
        if token != WRITER:
            raise _Refused(403 if token else 401, message="You don't have the rights" if token else "Log in")

    def _find(self, name: str) -> Repository:
        token, found = self._token(), self.hub.repositories.get(name)
        if found is None or (found.private and not token):
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def _find_commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._find(name)
        commit = repository.find(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", "Invalid rev id")
        return commit, repository.commits[commit]

    # reading

    def model_info(self, name: str, revision: str | None) -> None:
        commit, _ = self._find_commit(name, revision or "main")
        self._send_json({"id": name, "sha": commit, "private": self._find(name).private, "siblings": []})

    def tree(self, name: str, revision: str) -> None:
        _, files = self._find_commit(name, revision)
        rows = []
        for path, content in [*files.items(), *((extra, b"?") for extra in self.hub.listed)]:
            row = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if len(content) >= LARGE:
                row["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            rows.append(row)
        folders = {path.rpartition("/")[0] for path in files} - {""}
        self._send_json([*({"type": "directory", "path": p, "oid": "0" * 40} for p in folders), *rows])

    def resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self._find_commit(name, revision)
        if path not in files or path in self.hub.missing:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        content = files[path]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(content) >= LARGE:  # at another host, whose address is signed
            host = self.hub.address.replace("127.0.0.1", "localhost")
            headers |= {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{host}/cdn/{sha256(content)}/{path}?{SIGNATURE}"
            self._send(302, b"", headers)
            return
        content = content[::-1] if path in self.hub.corrupt else content
        self._send(200, content, headers | {"ETag": f'"{git_hash(files[path])}"'})

    def cdn(self, digest: str, path: str) -> None:
        if self.hub.down:
            raise _Refused(503)
        content = self.hub.objects[digest]
        content = content[::-1] if path in self.hub.corrupt else content
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        status = 206 if self.headers.get("Range") else 200
        cut = None
        if self.hub.cuts:
            self.hub.cuts, cut = self.hub.cuts - 1, self.hub.cut
        rest = content[start:]
        self.send_response(status)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(rest if cut is None else rest[:cut])
        self.close_connection = self.close_connection or cut is not None

    # writing

    def whoami(self) -> None:
        self._check_writer()
        self._send_json({"name": "tester", "type": "user", "orgs": []})

    def create_repository(self, body: bytes) -> None:
        self._check_writer()
        asked = json.loads(body)
        name = "/".join(filter(None, (asked["organization"], asked["name"])))
        if name in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo")
        made = self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._send_json({"url": f"{self.hub.address}/{name}", "name": name})

    def create_branch(self, name: str, branch: str, body: bytes = b"") -> None:
        self._check_writer()
        repository = self._find(name)
        if branch in repository.branches:
            raise _Refused(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self._send_json({})

    def validate_yaml(self, body: bytes) -> None:
        self._send_json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        self._check_writer()
        _, files = self._find_commit(name, revision)
        self._send_json({"files": [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if asked["size"] >= LARGE else "regular",
                "shouldIgnore": False,
                "oid": self._remote_hash(files.get(asked["path"])),
            }
            for asked in json.loads(body)["files"]
        ]})  # fmt: skip

    @staticmethod
    def _remote_hash(content: bytes | None) -> str | None:
        if content is None:
            return None
        return sha256(content) if len(content) >= LARGE else git_hash(content)

    def large_batch(self, name: str, body: bytes) -> None:
        self._check_writer()
        rows = []
        for asked in json.loads(body)["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                row["actions"] = {"upload": {"href": f"{self.hub.address}/upload/{asked['oid']}?{SIGNATURE}"}}
            rows.append(row)
        self._send_json({"transfer": "basic", "objects": rows}, "application/vnd.git-lfs+json")

    def upload(self, digest: str, body: bytes = b"") -> None:
        if sha256(body) != digest:
            raise _Refused(400)
        self.hub.objects[digest] = body
        self._send(200, b"", {})

    def make_commit(self, name: str, branch: str, body: bytes) -> None:
        self._check_writer()
        repository = self._find(name)
        before, files = self._find_commit(name, branch)
        files = dict(files)
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", before) != before:
            raise _Refused(412, message="A commit has happened since")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.commit(branch, files, header["summary"])
        self._send_json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.address}/{name}/commit/{made}"})

    def _send_json(self, answer: object, kind: str = "application/json") -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": kind})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_NAME = "([^/]+/[^/]+)"
_ROUTES = [
    (rf"GET /api/models/{_NAME}(?:/revision/(.+))?", "model_info"),
    (rf"GET /api/models/{_NAME}/tree/(.+?)/?", "tree"),
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create_repository"),
    (r"POST /api/validate-yaml", "validate_yaml"),
    (rf"POST /api/models/{_NAME}/branch/(.+)", "create_branch"),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", "preupload"),
    (rf"POST /api/models/{_NAME}/commit/(.+)", "make_commit"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "large_batch"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
    (r"GET /cdn/([0-9a-f]+)/(.+)", "cdn"),
    (r"PUT /upload/([0-9a-f]+)", "upload"),
]


@contextmanager
def run_hub() -> Iterator[Hub]:
    """Serve an empty hub while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
