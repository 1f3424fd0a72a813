"""The hub's HTTP protocol on loopback, as huggingface_hub and datasets speak it.

Two servers, because the hub is two: one answers questions and redirects the bytes of large files,
the other, of another origin, serves those bytes as the hub's content network does.
"""

import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.repository import Repository, described, described_folder, folders, git_sha, is_large
from tests.hub.trouble import Fault, Trouble

KINDS = {"models": "model", "datasets": "dataset"}


class FakeHub:
    """Repositories behind two loopback servers; `url` is what HF_ENDPOINT would be."""

    def __init__(self) -> None:
        """Starts serving at once."""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, set[str]] = {}
        self.requests: list[str] = []
        self.troubles: list[Trouble] = []
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._servers = [self._serve(_Hub), self._serve(_Storage)]
        self.url, self.storage_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )

    def _serve(self, handler: type["_Answering"]) -> ThreadingHTTPServer:
        bound = type(handler.__name__, (handler,), {"hub": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def close(self) -> None:
        """Stop answering: connections are refused from now on, and those that are open end."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):  # it may have ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def connected(self, connection: socket.socket) -> None:
        """A client is there, and may stay for further requests."""
        self._connections.append(connection)

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: str = "models",
        gated: bool = False,
        private: bool = False,
    ) -> Repository:
        """A repository with one commit on `main`."""
        repository = Repository(kind, name, gated, private)
        repository.commit(files)
        self.repositories[kind, name] = repository
        return repository

    def fail(self, fault: Fault, pattern: str, *, times: int = 10**9, seconds: float = 0) -> None:
        """Let requests whose method and path match `pattern` fail.

        seconds: of Retry-After
        """
        self.troubles.append(Trouble(fault, re.compile(pattern), times, seconds))

    def trouble(self, request: str) -> Trouble | None:
        """What this request suffers, if anything; counts it."""
        with self._lock:
            self.requests.append(request)
            for trouble in self.troubles:
                if trouble.times > 0 and trouble.pattern.search(request):
                    trouble.times -= 1
                    return trouble
        return None


class _Answering(BaseHTTPRequestHandler):
    """What both servers share: troubles, and answers with a length."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connected(self.connection)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.sent = self.rfile.read(length)
        url = urllib.parse.urlsplit(self.path)
        self.query = urllib.parse.parse_qs(url.query)
        self.trouble = self.hub.trouble(f"{self.command} {urllib.parse.unquote(url.path)}")
        if self.trouble and self._failed(self.trouble):
            return
        self.answer(urllib.parse.unquote(url.path), url.path)

    def _failed(self, trouble: Trouble) -> bool:
        """Answer with the fault; False if the true answer comes, damaged."""
        if trouble.fault is Fault.RATE_LIMIT:
            self.refuse(429, "", "rate limit", {"Retry-After": str(int(trouble.seconds))})
        elif trouble.fault is Fault.UNAVAILABLE:
            self.refuse(503, "", "Service Unavailable")
        elif trouble.fault is Fault.PROXY:
            page = b"<!DOCTYPE html><html><body>Please log in to the network.</body></html>"
            self.reply(200, page, {"Content-Type": "text/html"})
        elif trouble.fault is Fault.RESET:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
        else:
            return False
        return True

    def answer(self, path: str, quoted: str) -> None:
        """Answer one request."""
        raise NotImplementedError

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Headers, and the body unless only headers were asked for."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, data: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """A JSON body."""
        kind = {"Content-Type": "application/json; charset=utf-8"}
        self.reply(status, json.dumps(data).encode(), kind | dict(headers))

    def refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] = {}) -> None:
        """An error as the hub words it: its code and message are headers too."""
        named = {"X-Error-Code": code} if code else {}
        self.reply_json(
            {"error": message}, status, {**named, "X-Error-Message": message, **headers}
        )

    def file(self, data: bytes, headers: Mapping[str, str]) -> None:
        """A file's bytes or a range of them, damaged if so asked."""
        fault = self.trouble.fault if self.trouble else None
        if fault is Fault.CORRUPT:
            middle = len(data) // 2
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        status, first, size = 200, 0, len(data)
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        extra: dict[str, str] = {"Accept-Ranges": "bytes"}
        if found:
            first, last = int(found[1]), int(found[2] or size - 1)
            extra["Content-Range"] = f"bytes {first}-{last}/{size}"
            status, data = 206, data[first : last + 1]
        extra["Content-Length"] = str(len(data))
        if fault is Fault.TRUNCATED:
            data = data[: len(data) // 2]
            self.close_connection = True
        self.reply(status, data, {**headers, **extra})


class _Storage(_Answering):
    """Bytes by their sha256, for whoever has the address."""

    def answer(self, path: str, quoted: str) -> None:
        sha = path.rpartition("/")[2]
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha:
                        self.file(data, {"ETag": f'"{sha}"'})
                        return
        self.refuse(404, "", "no such blob")


class _Hub(_Answering):
    """The API and the addresses of files."""

    def answer(self, path: str, quoted: str) -> None:
        if path == "/api/whoami-v2":
            self._whoami()
            return
        pieces = quoted.strip("/").split("/")
        if pieces[0] == "api" and pieces[1:2] and pieces[1] in KINDS:
            kind, rest, ask = pieces[1], pieces[2:], self._api
        else:
            kind = pieces[0] if pieces[0] in KINDS else "models"
            rest, ask = pieces[pieces[0] in KINDS :], self._resolve
        name = "/".join(map(urllib.parse.unquote, rest[:2]))
        repository = self.hub.repositories.get((kind, name))
        if repository is None and ask == self._api and len(rest) == 0:
            self.reply_json([])
        elif repository is None or (repository.private and not self._may_read(repository)):
            # Who is not known is not told whether there is such a repository.
            self.refuse(404 if self._token() else 401, "RepoNotFound", "Repository not found")
        elif self._token() is not None and self._token() not in self.hub.tokens:
            self.refuse(401, "", "Invalid credentials in Authorization header")
        else:
            ask(repository, [urllib.parse.unquote(piece) for piece in rest[2:]])

    def _token(self) -> str | None:
        given = self.headers.get("Authorization") or ""
        return given.removeprefix("Bearer ") or None

    def _may_read(self, repository: Repository) -> bool:
        if not (repository.gated or repository.private):
            return True
        return repository.name in self.hub.tokens.get(self._token() or "", set())

    def _whoami(self) -> None:
        if self._token() in self.hub.tokens:
            self.reply_json({"type": "user", "name": "someone", "auth": {"accessToken": {}}})
        else:
            self.refuse(401, "", "Invalid username or password.")

    def _refuse_gated(self, repository: Repository) -> None:
        status = 403 if self._token() else 401
        self.refuse(
            status,
            "GatedRepo",
            f"Access to model {repository.name} is restricted. You must have access to it and be "
            "authenticated to access it. Please log in.",
        )

    def _api(self, repository: Repository, rest: list[str]) -> None:
        action = rest[0] if rest else "revision"
        answers: dict[str, Callable[[Repository, list[str]], None]] = {
            "revision": self._info,
            "tree": self._tree,
            "paths-info": self._paths,
            "refs": self._refs,
            "auth-check": self._auth_check,
        }
        if action not in answers:
            self.refuse(404, "", f"no such question: {self.path}")
            return
        answers[action](repository, rest[1:])

    def _files(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = repository.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, repository.commits[commit]

    def _info(self, repository: Repository, rest: list[str]) -> None:
        held = self._files(repository, rest[0] if rest else "main")
        if held is None:
            return
        commit, files = held
        siblings: list[dict[str, Any]] = []
        for path, data in sorted(files.items()):
            entry: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.query:
                entry |= {"size": len(data), "blobId": git_sha(data)}
                if is_large(path):
                    sha = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        self.reply_json(
            {
                "_id": "0" * 24,
                "id": repository.name,
                "author": repository.name.partition("/")[0],
                "sha": commit,
                "lastModified": "2022-09-16T14:28:46.000Z",
                "createdAt": "2022-05-11T08:25:17.000Z",
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 1,
                "likes": 1,
                "tags": [],
                "siblings": siblings,
            }
        )

    def _tree(self, repository: Repository, rest: list[str]) -> None:
        held = self._files(repository, rest[0] if rest else "main")
        if held is None:
            return
        folder = "/".join(rest[1:])
        below = f"{folder}/" if folder else ""
        inside = {path: data for path, data in held[1].items() if path.startswith(below)}
        if folder and not inside:
            self.refuse(404, "EntryNotFound", f"{folder} does not exist on this revision")
            return
        recursive = self.query.get("recursive", ["False"])[0].lower() in ("true", "1")
        entries = []
        for path in folders(inside, below):
            if recursive or "/" not in path.removeprefix(below):
                entries.append(described_folder(path))
        for path, data in sorted(inside.items()):
            if recursive or "/" not in path.removeprefix(below):
                entries.append(described(path, data))
        self.reply_json(entries)

    def _paths(self, repository: Repository, rest: list[str]) -> None:
        held = self._files(repository, rest[0] if rest else "main")
        if held is None:
            return
        if "json" in (self.headers.get("Content-Type") or ""):
            asked = json.loads(self.sent)["paths"]
        else:
            asked = urllib.parse.parse_qs(self.sent.decode()).get("paths", [])
        entries = []
        for path in asked:
            path = path.strip("/")
            if path in held[1]:
                entries.append(described(path, held[1][path]))
            elif any(other.startswith(f"{path}/") for other in held[1]):
                entries.append(described_folder(path))
        self.reply_json(entries)

    def _refs(self, repository: Repository, rest: list[str]) -> None:
        def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in refs.items()
            ]

        self.reply_json(
            {
                "branches": listed("heads", repository.branches),
                "tags": listed("tags", repository.tags),
                "converts": [],
            }
        )

    def _auth_check(self, repository: Repository, rest: list[str]) -> None:
        if self._may_read(repository):
            self.reply_json({})
        else:
            self._refuse_gated(repository)

    def _resolve(self, repository: Repository, rest: list[str]) -> None:
        if len(rest) < 3 or rest[0] != "resolve":
            self.refuse(404, "", f"no such page: {self.path}")
            return
        held = self._files(repository, rest[1])
        if held is None:
            return
        path = "/".join(rest[2:])
        commit, files = held
        headers = {"X-Repo-Commit": commit}
        if not self._may_read(repository):
            self._refuse_gated(repository)
        elif path not in files:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        elif is_large(path):
            sha = hashlib.sha256(files[path]).hexdigest()
            headers |= {
                "X-Linked-Size": str(len(files[path])),
                "X-Linked-ETag": f'"{sha}"',
                "Location": f"{self.hub.storage_url}/{path}/{sha}",
            }
            self.reply(302, b"", headers)
        else:
            self.file(files[path], {**headers, "ETag": f'"{git_sha(files[path])}"'})
