"""A server on the loopback that speaks enough of W&B's protocol for the real client: init, resume, log, finish, sync,
tables, and saving a workspace and a report.

The client sends GraphQL for the run itself, posts rows, summary and exit code to the run's `file_stream`, and puts
files.
"""

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0" * 40


@dataclass
class ReceivedRun:
    """What the server knows of a run after the client's requests."""

    config: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    job_type: str | None = None
    display_name: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    """History rows by line number: a client that resumes goes on where the server's lines end."""
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return [self.lines[number] for number in sorted(self.lines)]


class WandbStub:
    """`with WandbStub() as stub:` serves at `stub.url`; `stub.runs` maps run ids to what arrived."""

    def __init__(self) -> None:
        self.runs: dict[str, ReceivedRun] = {}
        self.requests: list[str] = []
        self.files: dict[str, bytes] = {}
        """What was put, by the path below /storage/."""
        self.views: dict[str, dict[str, Any]] = {}
        """Workspaces and reports by their names at W&B."""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # idle sockets reset
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "WandbStub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str) -> dict[str, str]:
        """Variables that lead a client here, away from any key or setting of this machine's user."""
        quiet = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
        return quiet | {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY, "HOME": home}

    def _handler(stub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.body()
                with stub._lock:
                    reply = json.dumps(stub._answer(self.command, self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            do_GET = do_POST = do_PUT = answer

            def body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "") == "chunked":
                    chunks = []
                    while size := int(self.rfile.readline(), 16):
                        chunks.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    content = b"".join(chunks)
                else:
                    content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _answer(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        self.requests.append(f"{method} {path}")
        if path == "/graphql":
            request = json.loads(body)
            operation = re.match(r"\s*(?:query|mutation)\s+(\w+)", request["query"])
            name = operation.group(1) if operation else ""
            return {"data": getattr(self, f"_{name}", lambda variables: {})(request.get("variables") or {})}
        if method == "PUT":
            self.files[path.removeprefix("/storage/")] = body
        elif path.endswith("/file_stream"):
            self._file_stream(self.runs[path.split("/")[-2]], json.loads(body))
        return {}

    def _file_stream(self, run: ReceivedRun, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        if history := files.get("wandb-history.jsonl"):
            run.lines |= {history["offset"] + i: json.loads(line) for i, line in enumerate(history["content"])}
        if summary := files.get("wandb-summary.json"):
            run.summary = json.loads(summary["content"][-1])
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")

    # GraphQL operations, by the names that the client gives them -----------------------------------------------------

    def _Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        nobody = {"edges": []}
        user = {"id": "user", "entity": "me", "username": "me", "email": "me@example.org", "admin": False}
        return {"viewer": user | {"flags": "{}", "teams": nobody, "apiKeys": nobody}}

    _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _RunResumeStatus(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(variables["name"])
        known = run and self._describe(variables["name"], run) | {
            "tags": run.tags,
            "config": json.dumps(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": {}}',
        }
        return {"model": self._project() | {"bucket": known}}

    def _UpsertBucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, ReceivedRun())
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        run.group = variables.get("groupName") or run.group
        run.job_type = variables.get("jobType") or run.job_type
        run.display_name = variables.get("displayName") or run.display_name
        run.tags = variables.get("tags") or run.tags
        run.notes = variables.get("notes") or run.notes
        bucket = self._describe(name, run) | {"config": None, "sweepName": None, "project": self._project()}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run.lines)}, "inserted": new}}

    def _CreateRunFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}

    def _ArtifactType(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _CreateArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        sequence = {"id": "sequence", "latestArtifact": None}
        made = {"id": "artifact", "digest": variables["input"]["digest"], "state": "PENDING", "aliases": []}
        return {"createArtifact": {"artifact": made | {"artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, variables: dict[str, Any]) -> dict[str, Any]:
        file = self._place("manifest.json")
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}

    def _CreateArtifactFiles(self, variables: dict[str, Any]) -> dict[str, Any]:
        nodes = [self._place(file["name"]) for file in variables["input"]["artifactFiles"]]
        edges = [{"node": node | {"storagePath": node["name"], "artifact": {"id": "artifact"}}} for node in nodes]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": "artifact", "digest": "digest"}}}

    def _UpsertView2(self, variables: dict[str, Any]) -> dict[str, Any]:
        return self._upsertView(variables)

    def _upsertView(self, variables: dict[str, Any]) -> dict[str, Any]:
        known = next((name for name in self.views if f"id-{name}" == variables.get("id")), variables["name"])
        new = known not in self.views
        self.views[known] = variables
        return {"upsertView": {"view": self._view(known), "inserted": new}}

    def _view(self, name: str) -> dict[str, Any]:
        view = self.views[name]
        shown = {key: view.get(key) for key in ("displayName", "description", "type", "spec")}
        return shown | {"id": f"id-{name}", "name": name, "project": self._project() | {"entityName": "me"}}

    def _ProjectViews(self, variables: dict[str, Any]) -> dict[str, Any]:
        reports = [name for name, view in self.views.items() if view["type"] == variables.get("viewType", "runs")]
        edges = [{"node": self._view(name), "cursor": name} for name in reports]
        page = {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None}
        return {"project": {"allViews": {"edges": edges, "pageInfo": page}}}

    def _GetProjects(self, variables: dict[str, Any]) -> dict[str, Any]:
        node = {"__typename": "Project", "id": "project", "name": "sae-sweeps", "entityName": "me"}
        node |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": None}
        page = {"__typename": "PageInfo", "hasNextPage": False, "endCursor": None}
        return {"models": {"edges": [{"node": node}], "pageInfo": page}}

    def _place(self, name: str) -> dict[str, Any]:
        url = f"{self.url}/storage/{name}"
        return {"id": name, "name": name, "displayName": name, "uploadUrl": url} | {
            "uploadHeaders": [],
            "uploadMultipartUrls": None,
        }

    def _describe(self, name: str, run: ReceivedRun) -> dict[str, Any]:
        return {"id": f"id-{name}", "name": name, "displayName": run.display_name, "notes": None, "description": ""}

    def _project(self) -> dict[str, Any]:
        return {"id": "project", "name": "sae-sweeps", "entity": {"id": "entity", "name": "me"}}
