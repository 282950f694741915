"""A small server that answers like the Hugging Face hub, or fails in the way that a test needs."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

CONTENT = bytes(range(256)) * 400  # 102,400 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """Serve `files` by path. Stop `cuts` times: first after `cut_after` bytes, then at once."""

    files: ClassVar[dict[str, bytes]] = {}
    cut_after, cuts, trouble, gone = 0, 0, False, "RepoNotFound"
    asked: ClassVar[list] = []

    def answer(self, with_body):
        content = type(self).files.get(self.path)
        type(self).asked.append((self.command, self.path, self.headers.get("Range")))
        if content is None or self.trouble:
            self.send_response(500 if self.trouble else 404)
            if content is None:
                self.send_header("X-Error-Code", self.gone)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if with_body and self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{SHA256}"')
        self.send_header("X-Repo-Commit", "c0ffee" * 6 + "cafe")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", span)
        self.end_headers()
        if not with_body:
            return
        if type(self).cuts > 0:
            type(self).cuts -= 1
            self.wfile.write(content[start : start + type(self).cut_after])
            self.wfile.flush()
            self.connection.close()
            type(self).cut_after = 0
            return
        self.wfile.write(content[start:])

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def log_message(self, *_):
        pass


@contextmanager
def serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
