"""A hub on loopback that holds one model: what huggingface_hub asks of the real one, and no more."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a folder as the repository ``id``; use it in a ``with`` block."""

    def __init__(self, id: str, folder: Path, port: int = 0, *, status: int = 200) -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(id, files, status))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(id: str, files: dict[str, bytes], status: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            if status != 200:
                self._send(status, b"{}", body)
            elif path.startswith(f"/api/models/{id}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                    for name, data in files.items()
                ]
                self._send(200, json.dumps(tree).encode(), body)
            elif path == f"/api/models/{id}" or path.startswith(f"/api/models/{id}/revision/"):
                siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                info = {"id": id, "sha": COMMIT, "siblings": siblings}
                self._send(200, json.dumps(info).encode(), body)
            elif path.startswith(f"/{id}/resolve/") and (name := path.rsplit("/", 1)[1]) in files:
                self._send(200, files[name], body, etag=_oid(files[name]))
            else:
                self._send(404, b"{}", body)

        def _send(self, code: int, data: bytes, body: bool, etag: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            if etag:
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return

    return Handler


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
