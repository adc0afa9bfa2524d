"""A model hub on this machine: the part of the real one's protocol that downloading a model uses.

It serves folders as repositories, answers as the real one does for a repository that is gated or not there, and counts
what it is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repositories: Mapping[str, Path | str]) -> Iterator[str]:
    """`repositories`: id -> folder, or the error code of the real hub ("GatedRepo"). Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.split("?")[0].strip("/").split("/")
            listing = parts[:2] == ["api", "models"]
            parts = parts[2:] if listing else parts
            folder = repositories.get("/".join(parts[:2]), "RepoNotFound")
            if isinstance(folder, str):
                self.refuse(403 if folder == "GatedRepo" else 404, folder)
            elif len(parts) > 3 and parts[3] not in ("main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            elif listing:
                files = [
                    {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0"} for p in folder.iterdir()
                ]
                self.send(json.dumps(files if "tree" in parts else {"id": "/".join(parts[:2]), "sha": COMMIT}).encode())
            elif (folder / parts[-1]).is_file():
                self.send((folder / parts[-1]).read_bytes())
            else:
                self.refuse(404, "EntryNotFound")

        def send(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "as the hub says it")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
