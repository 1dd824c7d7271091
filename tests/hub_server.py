"""A server that stands in for the Hugging Face hub: so much of its interface as the real client uses for models."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_QwErTyUiOpAsDfGhJkLzXcVbNm"


@dataclass
class Stored:
    """A repository: its commits, each with its files, oldest first."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, files: dict[str, bytes]) -> str:
        text = repr((len(self.commits), sorted((name, hashlib.sha256(b).hexdigest()) for name, b in files.items())))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        return commit

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Hub:
    """The server's memory, which tests look into and change.

    requests: method and path of each, in order.
    dropped: uploads that the server breaks off before it answers.
    listed: names that every list of files has too.
    """

    endpoint: str = ""
    repositories: dict[str, Stored] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0
    listed: tuple[str, ...] = ()

    def files(self, name: str) -> dict[str, bytes]:
        stored = self.repositories[name]
        return stored.commits[stored.head]


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def _answer(self) -> None:
        self.path_only = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, self.path_only))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, answer in ROUTES.items():
            method, path = pattern.split(" ")
            if self.command in method.split("|") and (match := re.fullmatch(path, self.path_only)):
                if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.send(
                        {"error": "no"}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"}
                    )
                return answer(self, *match.groups())
        return self.send({"error": f"{self.command} {self.path_only}"}, 501)

    def send(self, content, status=200, headers=None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def stored(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        """A commit and its files; None, and the answer is sent, where there is none such."""
        found = self.hub.repositories.get(name)
        if found is None:
            return self.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        commit = found.head if revision == "main" else revision
        if commit not in found.commits:
            return self.send({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        return commit, found.commits[commit]

    def create(self) -> None:
        wish = json.loads(self.body)
        name = f"{wish['organization']}/{wish['name']}"
        if name in self.hub.repositories:
            return self.send(
                {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409
            )
        private = wish.get("private") is True or wish.get("visibility") == "private"
        self.hub.repositories[name] = Stored(private)
        self.hub.repositories[name].add({".gitattributes": b""})
        return self.send({"url": f"{self.hub.endpoint}/{name}", "id": name})

    def info(self, name: str, revision: str | None) -> None:
        if found := self.stored(name, revision or "main"):
            siblings = [{"rfilename": path} for path in (*found[1], *self.hub.listed)]
            private = self.hub.repositories[name].private
            self.send({"id": name, "sha": found[0], "private": private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str) -> None:
        if found := self.stored(name, revision):
            names = [*found[1], *self.hub.listed]
            entries = [
                {"type": "file", "path": path, "size": len(found[1].get(path, b"")), "oid": "0"} for path in names
            ]
            self.send(entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        if found := self.stored(name, revision):
            content = found[1].get(path, b"hostile")
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": found[0]})

    def preupload(self, _: str) -> None:
        files = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        large = {each["path"]: each["path"].endswith((".safetensors", ".png", ".mp4")) for each in files}
        answer = [{"path": path, "uploadMode": modes[lfs], "shouldIgnore": False} for path, lfs in large.items()]
        self.send({"files": answer})

    def batch(self, _: str) -> None:
        def upload(each):
            return {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}}

        objects = [upload(each) for each in json.loads(self.body)["objects"]]
        self.send({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def keep(self, oid: str) -> None:
        if self.hub.dropped:
            self.hub.dropped -= 1
            self.close_connection = True
            self.connection.close()
            return
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.send({})

    def commit(self, name: str) -> None:
        found = self.stored(name)
        assert found is not None
        files = dict(found[1])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.hub.repositories[name].add(files)
        self.send({"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{oid}"})


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": lambda handler: handler.send({"errors": [], "warnings": []}),
    f"GET /api/models/{NAME}(?:/revision/(.+))?": Handler.info,
    f"GET /api/models/{NAME}/tree/([^/]+)": Handler.tree,
    f"POST /api/models/{NAME}/preupload/main": Handler.preupload,
    f"POST /{NAME}.git/info/lfs/objects/batch": Handler.batch,
    r"PUT /lfs/(\w+)": Handler.keep,
    f"POST /api/models/{NAME}/commit/main": Handler.commit,
    f"GET|HEAD /{NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
}
"""Method and path of each request that is answered, the narrower before the wider."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on this machine."""
    hub = Hub()
    handler = type("HandlerOfThisHub", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # a connection that was broken off is meant to be
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
