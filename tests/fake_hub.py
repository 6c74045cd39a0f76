"""A Hub on loopback: enough of the Hugging Face HTTP interface to push, list and download repositories.

`huggingface_hub` reads `HF_ENDPOINT` when it is imported, so code under test runs in a fresh process:

    def test_round_trip(fake_hub, tmp_path):
        fake_hub.run_python("from huggingface_hub import create_repo; create_repo('me/model')", home=tmp_path)
        assert fake_hub.repos["model", "me/model"].revisions["main"] == {}
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SOURCE_DIRECTORY = Path(__file__).resolve().parents[1] / "src"
LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".model", ".arrow")
PREFIX_TO_TYPE = {"": "model", "datasets/": "dataset", "spaces/": "space"}
TYPE_TO_PREFIX = {repo_type: prefix for prefix, repo_type in PREFIX_TO_TYPE.items()}


@dataclass
class FakeRepo:
    """One repository: the files of every commit, and the branches that point at commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    @property
    def revisions(self) -> dict[str, dict[str, bytes]]:
        """Return the files of each branch, as path -> content."""
        return {name: self.commits[sha] for name, sha in self.branches.items()}

    def resolve(self, revision: str) -> str | None:
        """Return the commit a branch name or commit hash stands for, or None."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Store the complete file tree of a new commit on a branch and return its hash."""
        sha = hashlib.sha1(f"{branch}/{len(self.commits)}/{sorted(files)}/{message}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        self.messages.append(message)
        return sha


@dataclass
class Fault:
    """What goes wrong with the next requests to an address.

    Attributes:
        where: Pattern of `METHOD /path`, matched from its start.
        status: The answer's status; None breaks the connection instead.
        when: Where a connection breaks: `before` the body was read to its end, `after` the Hub has done what was asked
            and before it answers, or in the `middle` of the answer.
        times: How many requests it hits.
        headers: Further headers of the answer.
        body: The answer's body where it is not the Hub's JSON.
    """

    where: str
    status: int | None = None
    when: str = "before"
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


def blob_id(content: bytes) -> str:
    """Return the git hash of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """A Hub in a thread of this process, to be used as a context manager or with `start` and `stop`.

    Args:
        token: The only token that may write and read private repositories; None lets everybody.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.repos: dict[tuple[str, str], FakeRepo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> FakeHub:
        """Listen on a free port of 127.0.0.1."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port; the repositories stay readable through `repos`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> FakeHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Return the address to put into HF_ENDPOINT."""
        if self._server is None:
            raise RuntimeError("the fake Hub is not started")
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path) -> dict[str, str]:
        """Return the environment of a process that talks to this Hub only and keeps its cache in `home`."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
        python_path = os.pathsep.join(filter(None, [str(SOURCE_DIRECTORY), kept.get("PYTHONPATH")]))
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": self.token or "hf_anybody",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": python_path,
        }

    def run_python(self, code: str, *, home: Path, check: bool = True, **variables: str) -> subprocess.CompletedProcess:
        """Run Python code in a fresh process against this Hub and return it with its captured output.

        Args:
            code: The program.
            home: The folder for the Hugging Face cache.
            check: Whether a failing program fails the test, with its standard error in the message.
            variables: Further environment variables.
        """
        process = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment(home) | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check and process.returncode != 0:
            raise AssertionError(f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}")
        return process

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return the files of a repository at a branch, as path -> content."""
        return self.repos[repo_type, repo_id].revisions[revision]


class HubError(Exception):
    """A status with the Hub's own error code."""

    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: pytest reports what matters."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, method: Any) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.requests.append((self.command, parts.path))
        self.fault = self._next_fault(f"{self.command} {unquote(parts.path)}")
        if self.fault is not None and self.fault.status is None and self.fault.when == "before":
            self.rfile.read(min(16, int(self.headers.get("Content-Length") or 0)))
            self._break()
            return
        self.body = self._read_body()
        if self.fault is not None and self.fault.status is not None:
            if self.fault.body is None:
                self._json({"error": "by order"}, self.fault.status, self.fault.headers)
            else:
                self._send(self.fault.body, self.fault.status, self.fault.headers)
            return
        try:
            with self.hub.lock:
                method(unquote(parts.path))
        except HubError as error:
            self._json({"error": error.message}, error.status, {"X-Error-Code": error.code} if error.code else {})

    def _next_fault(self, request: str) -> Fault | None:
        with self.hub.lock:
            for fault in self.hub.faults:
                if fault.times > 0 and re.match(fault.where, request):
                    fault.times -= 1
                    return fault
        return None

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().strip(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.fault is not None and self.fault.status is None:
            if self.fault.when == "middle":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(content) + 1) + content[:9])
            self._break()
            return
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    # -- repositories

    def _allowed(self) -> bool:
        return self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repo(self, repo_type: str, repo_id: str, write: bool = False) -> FakeRepo:
        repo = self.hub.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and not self._allowed()):
            raise HubError(404, "RepoNotFound", "Repository not found")
        if write and not self._allowed():
            raise HubError(401, None, "Invalid credentials")
        return repo

    def _commit_of(self, repo: FakeRepo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def _api_target(self, path: str) -> tuple[FakeRepo, str, str, str, str]:
        """Return (repo, type, id, verb, rest) of /api/models/NAMESPACE/NAME[/verb[/rest]]."""
        match = re.fullmatch(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([^/]+)(?:/(.*))?)?", path)
        if match is None:
            raise HubError(404, None, f"no such address: {path}")
        repo_type, repo_id, verb, rest = match.groups()
        repo = self._repo(repo_type, repo_id, write=self.command not in ("GET", "HEAD") and verb != "paths-info")
        return repo, repo_type, repo_id, verb or "", rest or ""

    # -- verbs

    def _get(self, path: str) -> None:
        if path == "/api/whoami-v2":
            if not self._allowed():
                raise HubError(401, None, "Invalid credentials")
            self._json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif path.startswith("/api/"):
            self._get_api(path)
        else:
            self._get_file(path)

    def _get_api(self, path: str) -> None:
        repo, repo_type, repo_id, verb, rest = self._api_target(path)
        if verb in ("", "revision"):
            self._json(self._info(repo, repo_type, repo_id, self._commit_of(repo, rest or "main")))
        elif verb == "tree":
            revision, _, folder = rest.partition("/")
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("1", "true")
            self._json(self._tree(repo.commits[self._commit_of(repo, revision)], folder.strip("/"), recursive))
        elif verb == "refs":
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha} for name, sha in repo.branches.items()
            ]
            self._json({"branches": branches, "tags": [], "converts": []})
        else:
            raise HubError(404, None, f"no such address: {path}")

    def _info(self, repo: FakeRepo, repo_type: str, repo_id: str, sha: str) -> dict[str, Any]:
        card = repo.commits[sha].get("README.md", b"").decode()
        tag = re.search(r"^pipeline_tag: *(\S+)", card, flags=re.MULTILINE)
        library = re.search(r"^library_name: *(\S+)", card, flags=re.MULTILINE)
        return {
            "id": repo_id,
            "modelId": repo_id,
            "sha": sha,
            "private": repo.private,
            "tags": [],
            "pipeline_tag": tag.group(1) if tag else None,
            "library_name": library.group(1) if library else None,
            "siblings": [{"rfilename": name} for name in sorted(repo.commits[sha])],
            "author": repo_id.split("/")[0],
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
        }

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
        if name.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder}/" if folder else ""
        inside = {name: content for name, content in sorted(files.items()) if name.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        entries, folders = [], set()
        for name, content in inside.items():
            parts = name[len(prefix) :].split("/")
            folders |= {prefix + "/".join(parts[:depth]) for depth in range(1, len(parts) if recursive else 2)} - {name}
            if recursive or len(parts) == 1:
                entries.append(self._entry(name, content))
        return [
            {"type": "directory", "path": name, "size": 0, "oid": blob_id(name.encode())} for name in folders
        ] + entries

    def _get_file(self, path: str) -> None:
        match = re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match is None:
            raise HubError(404, None, f"no such address: {path}")
        prefix, repo_id, revision, name = match.groups()
        repo = self._repo(PREFIX_TO_TYPE[prefix], repo_id)
        sha = self._commit_of(repo, revision)
        content = repo.commits[sha].get(name)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if content is None:
            self._json({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        is_lfs = name.endswith(LFS_SUFFIXES)
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest() if is_lfs else blob_id(content)}"'
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if requested is None:
            self._send(content, 200, headers)
            return
        first, last = int(requested[1]), int(requested[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(content[first : last + 1], 206, headers)

    def _post(self, path: str) -> None:
        if path == "/api/repos/create":
            self._create()
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/(datasets/|spaces/|)([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._repo(PREFIX_TO_TYPE[match[1]], match[2], write=True)
            self._lfs_batch()
        else:
            repo, repo_type, repo_id, verb, rest = self._api_target(path)
            if verb == "preupload":
                self._preupload(repo, rest)
            elif verb == "commit":
                self._commit(repo, repo_type, repo_id, rest)
            elif verb == "branch":
                self._branch(repo, rest)
            elif verb == "paths-info":
                self._paths_info(repo, rest)
            else:
                raise HubError(404, None, f"no such address: {path}")

    def _create(self) -> None:
        if not self._allowed():
            raise HubError(401, None, "Invalid credentials")
        request = json.loads(self.body)
        repo_type = request.get("type") or "model"
        repo_id = f"{request.get('organization') or 'tester'}/{request['name']}"
        known = (repo_type, repo_id) in self.hub.repos
        if not known:
            private = request.get("visibility") == "private" or bool(request.get("private"))
            repo = self.hub.repos[repo_type, repo_id] = FakeRepo(private=private)
            repo.commit("main", {}, "initial commit")
        url = f"{self.hub.endpoint}/{TYPE_TO_PREFIX[repo_type]}{repo_id}"
        self._json({"url": url, "name": repo_id, "id": repo_id}, 409 if known else 200)

    def _preupload(self, repo: FakeRepo, revision: str) -> None:
        current = repo.commits[self._commit_of(repo, revision)]
        files = []
        for request in json.loads(self.body)["files"]:
            name = request["path"]
            answer = {"path": name, "uploadMode": "lfs" if name.endswith(LFS_SUFFIXES) else "regular"}
            content = current.get(name)
            if content is not None:
                is_lfs = name.endswith(LFS_SUFFIXES)
                answer["oid"] = hashlib.sha256(content).hexdigest() if is_lfs else blob_id(content)
            files.append(answer | {"shouldIgnore": False})
        self._json({"files": files, "commitOid": self._commit_of(repo, revision)})

    def _lfs_batch(self) -> None:
        objects = []
        for request in json.loads(self.body)["objects"]:
            answer = {"oid": request["oid"], "size": request["size"]}
            if request["oid"] not in self.hub.lfs:
                answer["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs-storage/{request['oid']}"}}
            objects.append(answer)
        self._json({"transfer": "basic", "objects": objects})

    def _put(self, path: str) -> None:
        oid = path.rsplit("/", 1)[-1]
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, None, "content does not match its hash")
        self.hub.lfs[oid] = self.body
        self._send(b"")

    def _commit(self, repo: FakeRepo, repo_type: str, repo_id: str, branch: str) -> None:
        files = dict(repo.commits[self._commit_of(repo, branch)])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", self._commit_of(repo, branch)) != self._commit_of(repo, branch):
                    raise HubError(412, None, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise HubError(400, None, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {name: content for name, content in files.items() if not name.startswith(value["path"])}
        pull = {}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            branch = f"refs/pr/{number}"
            pull = {"pullRequestUrl": f"{self.hub.endpoint}/{TYPE_TO_PREFIX[repo_type]}{repo_id}/discussions/{number}"}
        sha = repo.commit(branch, files, message)
        url = f"{self.hub.endpoint}/{TYPE_TO_PREFIX[repo_type]}{repo_id}/commit/{sha}"
        self._json({"commitUrl": url, "commitOid": sha, "success": True, "hookOutput": "", **pull})

    def _branch(self, repo: FakeRepo, name: str) -> None:
        if name in repo.branches:
            raise HubError(409, None, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint") or "main"
        repo.branches[name] = self._commit_of(repo, start)
        self._json({})

    def _paths_info(self, repo: FakeRepo, revision: str) -> None:
        files = repo.commits[self._commit_of(repo, revision)]
        fields = parse_qs(self.body.decode()) if b"=" in self.body[:10] else json.loads(self.body)
        self._json([self._entry(name, files[name]) for name in fields.get("paths", []) if name in files])

    def _delete(self, path: str) -> None:
        if path != "/api/repos/delete":
            raise HubError(404, None, f"no such address: {path}")
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or 'tester'}/{request['name']}"
        self._repo(request.get("type") or "model", repo_id, write=True)
        del self.hub.repos[request.get("type") or "model", repo_id]
        self._json({})


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    """Yield a started Hub on loopback that lets everybody in."""
    with FakeHub() as hub:
        yield hub
