"""A local stand-in for the Hugging Face hub: the folders of its cache as the client lays them out, and a server."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

A, B = "a" * 40, "b" * 40
"""Two commits."""


def cached(cache: Path, kind: str, name: str, commit: str, files: Path | None = None, branch: str = "main") -> None:
    """Put a repository into a cache folder as `hf download` leaves it, the branch at the commit."""
    place = cache / f"{kind}s--{name.replace('/', '--')}"
    (place / "refs" / branch).parent.mkdir(parents=True, exist_ok=True)
    (place / "refs" / branch).write_text(commit)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files.iterdir() if files else ():
        (snapshot / file.name).write_bytes(file.read_bytes())


@contextmanager
def served(commits: dict[str, str], asked: list[str]):
    """A hub that knows a commit by `models/ORG/NAME/revision/BRANCH` and notes each path asked; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/")
            asked.append(path)
            known = commits.get(path)
            repo = path.partition("/revision/")[0]
            missing = "RevisionNotFound" if any(key.startswith(f"{repo}/") for key in commits) else "RepoNotFound"
            self.send_response(200 if known else 404)
            if not known:
                self.send_header("X-Error-Code", missing)
            self.end_headers()
            self.wfile.write(json.dumps({"id": repo.partition("/")[2], "sha": known}).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
