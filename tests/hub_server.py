"""A Hub of our own for the tests: the REST calls that huggingface_hub makes, over HTTP, from memory.

    with HubServer() as hub:
        hub.add_repo("org/name", {"config.json": b"{}"})
        HfApi(endpoint=hub.url, token=hub.token).list_models(author="org")
        assert hub.count("GET", "/api/models") == 1

The unmodified client talks to it, given `endpoint=hub.url` or `HF_ENDPOINT`; uploads need `HF_HUB_DISABLE_XET=1`.
Every request is in `hub.requests`. A function in `hub.fault` may answer in the server's place; `tests/hub_faults.py`
has one that makes a share of the answers faulty.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

from tests.hub_store import Blob, Commit, Repo, file_entry, is_lfs, stamp


@dataclass
class Request:
    """One request as the server saw it; `fault` says what was wrong with the answer."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    status: int = 0
    fault: str = ""

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What goes back: after `delay` seconds, and no more than `cut` bytes of the body before the connection breaks.

    With `cut=-1` it breaks before the first byte of the answer.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    cut: int | None = None

    @classmethod
    def json(cls, content: Any, status: int = 200, **headers: str) -> Answer:
        return cls(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    @classmethod
    def error(cls, status: int, code: str, message: str) -> Answer:
        return cls.json({"error": message}, status, **{"X-Error-Code": code, "X-Error-Message": message})


class HubServer:
    """A Hub on 127.0.0.1.

    Attributes:
        url: its address, the client's `endpoint`.
        token: the one token that may write, and read what is private; it is `user`'s.
        requests: every request so far.
        page_size: how many models a page of a listing has.
        fault: called with every request first; an `Answer` from it replaces the server's own.
    """

    user = "tester"
    token = "hf_test_token"

    def __init__(self, *, page_size: int = 100) -> None:
        self.page_size = page_size
        self.repos: dict[str, Repo] = {}
        self.collections: dict[str, list[tuple[str, str]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Answer | None] | None = None
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add_repo(self, id: str, files: dict[str, bytes], *, private: bool = False) -> str:
        """A repository (or a further commit of one) with these files; returns the commit sha."""
        repo = self.repos.setdefault(id, Repo(id, private))
        blobs = {path: Blob(content, is_lfs(path, len(content))) for path, content in files.items()}
        return repo.commit({**repo.at("main").files, **blobs}, title="add files").sha

    def add_collection(self, slug: str, items: list[tuple[str, str]]) -> None:
        """A collection of (type, id) pairs."""
        self.collections[slug] = items

    def count(self, method: str | None = None, path: str = "") -> int:
        """How many requests had that method and a path that the regular expression matches from its start."""
        return sum(
            (method is None or seen.method == method) and re.match(path, seen.path) is not None
            for seen in self.requests
        )

    def answer(self, request: Request) -> Answer:
        """What the Hub says to a request."""
        if self.fault is not None and (answer := self.fault(request)) is not None:
            return answer
        return self.respond(request)

    def respond(self, request: Request) -> Answer:
        """What a Hub in good health says."""
        for method, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == ("GET" if request.method == "HEAD" else request.method):
                parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                with self.lock:
                    try:
                        return handle(self, request, **parts)
                    except _Refusal as refusal:
                        return refusal.answer
        return Answer.error(404, "", f"no route for {request.method} {request.path}")

    def may_write(self, request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {self.token}"

    def find(self, request: Request, id: str, rev: str | None = None) -> tuple[Repo, Commit]:
        """The repository and commit that a request is about, or a refusal in the Hub's words."""
        repo = self.repos.get(id)
        if repo is None or (repo.private and not self.may_write(request)):
            raise _Refusal(
                Answer.error(404 if self.may_write(request) else 401, "RepoNotFound", "Repository not found")
            )
        commit = repo.at(rev)
        if commit is None:
            raise _Refusal(Answer.error(404, "RevisionNotFound", f"Invalid rev id: {rev}"))
        return repo, commit


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # The default of 5 refuses connections of a client with many workers.
    request_queue_size = 128


class _Refusal(Exception):
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def _whoami(hub: HubServer, request: Request) -> Answer:
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    access = {"displayName": "test", "role": "write"}
    orgs = [{"name": name, "type": "org"} for name in sorted({id.split("/")[0] for id in hub.repos})]
    user = {"type": "user", "id": "0", "name": hub.user, "fullname": hub.user, "email": None, "orgs": orgs}
    return Answer.json({**user, "auth": {"type": "access_token", "accessToken": access}})


def _create(hub: HubServer, request: Request) -> Answer:
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    wanted = request.json()
    id = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
    answer = {"url": f"{hub.url}/{id}", "name": id}
    if id in hub.repos:
        return Answer.json({**answer, "error": "You already created this model repo"}, 409)
    hub.repos[id] = Repo(id, private=wanted.get("visibility") == "private" or wanted.get("private") is True)
    return Answer.json(answer)


def _delete(hub: HubServer, request: Request) -> Answer:
    wanted = request.json()
    id = f"{wanted.get('organization') or hub.user}/{wanted['name']}"
    hub.find(request, id)
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    del hub.repos[id]
    return Answer(200, b"OK")


def _validate_yaml(hub: HubServer, request: Request) -> Answer:
    content = request.json()["content"]
    match = re.match(r"\A---\n(.*?)\n---", content, re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return Answer.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    errors = [] if isinstance(card, dict) else [{"message": "metadata must be a mapping"}]
    for name, kind in (("tags", list), ("library_name", str), ("pipeline_tag", str), ("model-index", list)):
        if not errors and name in card and not isinstance(card[name], kind):
            errors.append({"message": f'"{name}" must be a {kind.__name__}'})
    warnings = [] if match else [{"message": "empty or missing yaml metadata in repo card"}]
    return Answer.json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def _list(hub: HubServer, request: Request) -> Answer:
    asked = {name: values[0] for name, values in request.query.items()}
    wanted = {tag for value in request.query.get("filter", []) for tag in value.split(",")}
    full = asked.get("full") in ("True", "true", "1") or "expand" in request.query
    rows = []
    for id, repo in sorted(hub.repos.items()):
        if repo.private and not hub.may_write(request):
            continue
        if asked.get("author") not in (None, id.split("/")[0]) or asked.get("search", "") not in id:
            continue
        if not wanted or wanted <= set(repo.info(repo.at("main"), full=False)["tags"]):
            rows.append(repo)
    start = int(asked.get("cursor", 0))
    # The client's `limit` is how many it wants in all; a page never has more than the server's own limit.
    size = min(hub.page_size, int(asked.get("limit", hub.page_size)))
    headers = {}
    if start + size < len(rows):
        query = urlencode({**request.query, "cursor": start + size}, doseq=True)
        headers["Link"] = f'<{hub.url}/api/models?{query}>; rel="next"'
    page = [repo.info(repo.at("main"), full=full) for repo in rows[start : start + size]]
    return Answer.json(page, **headers)


def _info(hub: HubServer, request: Request, id: str, rev: str | None = None) -> Answer:
    repo, commit = hub.find(request, id, rev)
    return Answer.json(repo.info(commit, full=True, blobs="blobs" in request.query))


def _preupload(hub: HubServer, request: Request, id: str, rev: str) -> Answer:
    _, commit = hub.find(request, id, rev)
    files = []
    for asked in request.json()["files"]:
        mode = "lfs" if is_lfs(asked["path"], asked["size"]) else "regular"
        row = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
        if asked["path"] in commit.files:
            row["oid"] = commit.files[asked["path"]].etag
        files.append(row)
    return Answer.json({"files": files})


def _lfs_batch(hub: HubServer, request: Request, id: str) -> Answer:
    hub.find(request, id)
    objects = []
    for asked in request.json()["objects"]:
        row: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in hub.objects:
            upload, verify = f"{hub.url}/lfs/{asked['oid']}", f"{hub.url}/{id}.git/info/lfs/verify"
            row["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        objects.append(row)
    return Answer.json({"transfer": "basic", "objects": objects})


def _lfs_put(hub: HubServer, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        return Answer.error(400, "", "the content does not have the promised sha256")
    hub.objects[oid] = request.body
    return Answer()


def _lfs_verify(hub: HubServer, request: Request, id: str) -> Answer:
    asked = request.json()
    held = hub.objects.get(asked["oid"])
    return Answer() if held is not None and len(held) == asked["size"] else Answer.error(404, "", "no such object")


def _commit(hub: HubServer, request: Request, id: str, rev: str) -> Answer:
    repo, parent = hub.find(request, id, rev)
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    wanted = lines[0]["value"].get("parentCommit")
    if wanted is not None and wanted != parent.sha:
        return Answer.error(412, "", f"A commit has happened since {wanted}")
    try:
        commit = repo.apply(lines, hub.objects, rev)
    except KeyError as error:
        return Answer.error(400, "", f"LFS object {error} was not uploaded")
    return Answer.json({"success": True, "commitOid": commit.sha, "commitUrl": f"{hub.url}/{id}/commit/{commit.sha}"})


def _tree(hub: HubServer, request: Request, id: str, rev: str, under: str = "") -> Answer:
    repo, commit = hub.find(request, id, rev)
    recursive = request.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    entries = repo.tree(commit, under, recursive=recursive)
    return Answer.json(entries) if entries else Answer.error(404, "EntryNotFound", f"{under} does not exist")


def _paths_info(hub: HubServer, request: Request, id: str, rev: str) -> Answer:
    _, commit = hub.find(request, id, rev)
    paths = parse_qs(request.body.decode()).get("paths", [])
    return Answer.json([file_entry(path, commit.files[path]) for path in paths if path in commit.files])


def _refs(hub: HubServer, request: Request, id: str) -> Answer:
    repo, _ = hub.find(request, id)

    def rows(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

    return Answer.json({"branches": rows("heads", repo.branches), "tags": rows("tags", repo.tags), "converts": []})


def _commits(hub: HubServer, request: Request, id: str, rev: str) -> Answer:
    repo, commit = hub.find(request, id, rev)
    past = repo.commits[: repo.commits.index(commit) + 1]
    authors = [{"user": hub.user}]
    rows = [{"id": c.sha, "title": c.title, "message": "", "date": stamp(c.date), "authors": authors} for c in past]
    return Answer.json(rows[::-1])


def _tag(hub: HubServer, request: Request, id: str, rev: str) -> Answer:
    repo, commit = hub.find(request, id, rev)
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    repo.tags[request.json()["tag"]] = commit.sha
    return Answer()


def _collection(hub: HubServer, request: Request, slug: str) -> Answer:
    if slug not in hub.collections:
        return Answer.error(404, "", "Collection not found")
    items = [
        {"_id": str(position), "id": id, "type": kind, "position": position}
        for position, (kind, id) in enumerate(hub.collections[slug])
    ]
    about = {"slug": slug, "title": slug, "owner": {"name": slug.split("/")[0], "type": "org"}, "position": 0}
    about |= {"lastUpdated": "2026-01-01T00:00:00.000Z", "private": False, "theme": "blue", "upvotes": 0}
    return Answer.json({**about, "items": items})


def _new_collection(hub: HubServer, request: Request) -> Answer:
    if not hub.may_write(request):
        return Answer.error(401, "", "Invalid username or password.")
    asked = request.json()
    words = re.sub(r"\W+", "-", asked["title"].lower())
    slug = f"{asked['namespace']}/{words}-{hashlib.sha256(asked['title'].encode()).hexdigest()[:24]}"
    if slug in hub.collections:
        return Answer(409, json.dumps({"slug": slug}).encode())
    hub.add_collection(slug, [])
    return _collection(hub, request, slug)


def _collect(hub: HubServer, request: Request, slug: str) -> Answer:
    item = request.json()["item"]
    if (item["type"], item["id"]) in hub.collections[slug]:
        return Answer.error(409, "", "The item is in the collection.")
    hub.collections[slug].append((item["type"], item["id"]))
    return _collection(hub, request, slug)


def _resolve(hub: HubServer, request: Request, id: str, rev: str, path: str) -> Answer:
    _, commit = hub.find(request, id, rev)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        answer = Answer.error(404, "EntryNotFound", f"Entry not found: {path}")
        answer.headers |= headers
        return answer
    headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not span:
        return Answer(200, blob.content, headers)
    first, last = int(span[1]), min(int(span[2] or len(blob.content) - 1), len(blob.content) - 1)
    if first > last:
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(blob.content)}"})
    headers["Content-Range"] = f"bytes {first}-{last}/{len(blob.content)}"
    return Answer(206, blob.content[first : last + 1], headers)


_ID = r"(?P<id>[\w.\-]+(?:/[\w.\-]+)?)"
# A branch with a slash in its name arrives quoted.
_REV = r"(?P<rev>[^/]+)"
_ROUTES: tuple[tuple[str, str, Callable[..., Answer]], ...] = (
    ("GET", r"/api/whoami-v2", _whoami),
    ("POST", r"/api/repos/create", _create),
    ("DELETE", r"/api/repos/delete", _delete),
    ("POST", r"/api/validate-yaml", _validate_yaml),
    ("GET", r"/api/models", _list),
    ("POST", rf"/api/models/{_ID}/preupload/{_REV}", _preupload),
    ("POST", rf"/api/models/{_ID}/commit/{_REV}", _commit),
    ("POST", rf"/api/models/{_ID}/paths-info/{_REV}", _paths_info),
    ("POST", rf"/api/models/{_ID}/tag/{_REV}", _tag),
    ("GET", rf"/api/models/{_ID}/tree/{_REV}(?:/(?P<under>.+))?", _tree),
    ("GET", rf"/api/models/{_ID}/commits/{_REV}", _commits),
    ("GET", rf"/api/models/{_ID}/refs", _refs),
    ("GET", rf"/api/models/{_ID}/revision/{_REV}", _info),
    ("GET", rf"/api/models/{_ID}", _info),
    ("POST", r"/api/collections", _new_collection),
    ("POST", r"/api/collections/(?P<slug>[^/]+/[^/]+)/items", _collect),
    ("GET", r"/api/collections/(?P<slug>[^/]+/[^/]+)", _collection),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _lfs_batch),
    ("POST", rf"/{_ID}\.git/info/lfs/verify", _lfs_verify),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _lfs_put),
    ("GET", rf"/{_ID}/resolve/{_REV}/(?P<path>.+)", _resolve),
)


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # Keep-alive, as the real Hub; without TCP_NODELAY an answer waits 40 ms for the client's acknowledgement.
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
            answer = hub.answer(request)
            request.status = answer.status
            if self.command == "PUT":
                request.body = b""  # Kept in `objects`; the log of a large upload need not hold it twice.
            with hub.lock:
                hub.requests.append(request)
            if answer.delay:
                threading.Event().wait(answer.delay)
            if answer.cut is not None:
                self.close_connection = True
                if answer.cut < 0:
                    return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):  # A client may hang up, and some tests kill one.
                    self.wfile.write(answer.body[: answer.cut])

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the requests are in `hub.requests`."""

    return Handler
