"""The part of the Hugging Face Hub's HTTP interface that uploads and downloads of a model use.

In memory, on loopback: repositories, commits, large files by the LFS protocol. Paths and fields are
those that huggingface_hub sends and reads.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import loopback

TOKEN = "hf_good"
COMMIT = "c" * 40
OWNER = "lab"


@dataclass
class Repository:
    """What was committed, and who may see it."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)


class FakeHub(ThreadingHTTPServer):
    """Takes the token TOKEN, whose owner may write to OWNER's repositories alone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.broken = False
        """Answers 500 to commits."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub while the block runs."""
    hub = FakeHub()
    with loopback.serving(hub):
        yield hub


class Handler(BaseHTTPRequestHandler):
    """Routes of the hub."""

    protocol_version = "HTTP/1.1"
    server: FakeHub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: object = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        length = headers.pop("length", str(len(data)))
        for name, value in {"Content-Length": length, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def route(self) -> None:
        path = urlsplit(self.path).path
        self.server.seen.append(f"{self.command} {path}")
        body = self.body()
        if path.startswith("/large/"):
            self.server.large[path.removeprefix("/large/")] = body
            return self.answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        pattern = r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?(/.*)?"
        found = re.fullmatch(pattern, path)
        name = found[1] if found else ""
        if name not in self.server.repositories:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return self.of_repository(name, (found and found[2]) or "", body)

    do_GET = do_POST = do_PUT = do_HEAD = route

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        if asked["organization"] != OWNER:
            message = f"You don't have the rights to create a model under {asked['organization']}"
            return self.answer(403, {"error": message})
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, Repository(private))
        return self.answer(status, {"url": f"{self.server.endpoint}/{name}"})

    def of_repository(self, name: str, rest: str, body: bytes) -> None:
        repository = self.server.repositories[name]
        if rest in ("", "/revision/main", f"/revision/{COMMIT}"):
            siblings = [{"rfilename": file} for file in repository.files]
            about = {"id": name, "private": repository.private, "siblings": siblings}
            return self.answer(200, {**about, "sha": COMMIT, "tags": [], "downloads": 0})
        if rest.startswith("/tree/"):
            return self.answer(200, [self.entry(*each) for each in repository.files.items()])
        if rest == "/preupload/main":
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if rest == "/info/lfs/objects/batch":
            asked = json.loads(body)["objects"]
            return self.answer(
                200, {"transfer": "basic", "objects": [self.upload(o) for o in asked]}
            )
        if rest == "/commit/main":
            return self.commit(name, repository, body)
        found = re.fullmatch(r"/resolve/[^/]+/(.*)", rest)
        if found and found[1] in repository.files:
            content = repository.files[found[1]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, ETag=etag, X_Repo_Commit=COMMIT)
        return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha256(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid[:40]}

    def upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        action = {"href": f"{self.server.endpoint}/large/{asked['oid']}"}
        return {"oid": asked["oid"], "size": asked["size"], "actions": {"upload": action}}

    def commit(self, name: str, repository: Repository, body: bytes) -> None:
        if self.server.broken:
            return self.answer(500, {"error": "Internal error"})
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository.files[value["path"]] = content
        url = f"{self.server.endpoint}/{name}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
