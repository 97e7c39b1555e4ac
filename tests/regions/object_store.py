"""A small object store over HTTP: GET, HEAD, PUT and DELETE, ETag, If-Match, If-None-Match, metadata in headers."""

import contextlib
import hashlib
import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PREFIX = "x-amz-meta-"


class ObjectStore:
    """`hashed`: tags are of the content, as in Amazon S3; else each write has its own."""

    def __init__(self, *, hashed=False):
        self.hashed = hashed
        self.objects = {}  # path -> (body, tag, metadata)
        self.before_put = lambda path: None  # what others do between a client's look and its write
        self.requests = []
        self.fail_with = []  # statuses for the next requests
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)

    def put(self, path, body, metadata, if_match=None, if_none_match=None):
        with self._lock:
            stored = self.objects.get(path)
            if if_match is not None and stored is None:
                return 404, None
            if (if_match is not None and stored[1] != if_match) or (if_none_match == "*" and stored is not None):
                return 412, None
            tag = f'"{hashlib.md5(body).hexdigest() if self.hashed else next(self._numbers)}"'
            self.objects[path] = (body, tag, metadata)
            return 200, tag

    @contextlib.contextmanager
    def serve(self):
        """Yields the URL."""
        store = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, status, headers=(), body=b""):
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def failed(self):
                store.requests.append((self.command, self.path, dict(self.headers)))
                if store.fail_with:
                    self.answer(store.fail_with.pop(0))
                    return True
                return False

            def do_GET(self):
                if self.failed():
                    return
                if self.path in store.objects:
                    body, tag, metadata = store.objects[self.path]
                    self.answer(200, [("ETag", tag), *metadata.items()], body)
                else:
                    self.answer(404)

            do_HEAD = do_GET  # noqa: N815 - the name that the server looks for

            def do_PUT(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.failed():
                    return
                store.before_put(self.path)
                metadata = {
                    name.lower(): value for name, value in self.headers.items() if name.lower().startswith(PREFIX)
                }
                status, tag = store.put(
                    self.path, body, metadata, self.headers["If-Match"], self.headers["If-None-Match"]
                )
                self.answer(status, [("ETag", tag)] if tag else [])

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/bucket"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
