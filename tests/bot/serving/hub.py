"""A hub on loopback that holds one model: what huggingface_hub asks of the real one, and no more."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves a folder as the repository ``id``; use it in a ``with`` block.

    ``asked`` lists the files that were asked for, each with the byte from which on. After ``breaks_after``
    bytes of a file of weights the connection breaks, and the hub is out of order until :meth:`mend`.
    """

    def __init__(
        self, id: str, folder: Path, port: int = 0, *, status: int = 200, breaks_after: int | None = None
    ) -> None:
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        self.asked: list[tuple[str, int]] = []
        self.breaks_after = breaks_after
        self.broken = False
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self, id, files, status))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def mend(self) -> None:
        """Answer in full from here on."""
        self.breaks_after, self.broken = None, False

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: Hub, id: str, files: dict[str, bytes], status: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = urlsplit(self.path).path
            if status != 200 or hub.broken:
                self._send(503 if hub.broken else status, b"{}", body)
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
                self._send_file(name, files[name], body)
            else:
                self._send(404, b"{}", body)

        def _send_file(self, name: str, data: bytes, body: bool) -> None:
            large = name.endswith(".safetensors")
            etag = hashlib.sha256(data).hexdigest() if large else _oid(data)
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            if body:
                hub.asked.append((name, start))
            if body and large and hub.breaks_after is not None:
                hub.broken = True
                self._send(200, data, False, etag=etag)
                self.wfile.write(data[: hub.breaks_after])
                self.close_connection = True
                return
            self._send(206 if start else 200, data[start:], body, etag=etag, span=(start, len(data)))

        def _send(
            self, code: int, data: bytes, body: bool, etag: str = "", span: tuple[int, int] = (0, 0)
        ) -> None:
            self.send_response(code)
            if code == 206:
                self.send_header("Content-Range", f"bytes {span[0]}-{span[1] - 1}/{span[1]}")
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
