"""A proxy that treats a training service badly: a real HTTP server in front of a real one.

Each request may meet one misfortune: it never arrives (`lose`), its answer does not (`drop`), it is
late (`delay`), it arrives twice (`repeat`), or the proxy answers 429 or 503 in its place.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("lose", "drop", "delay", "repeat", "429", "503")
HOPS = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class Proxy:
    """What happens to requests: `misfortune(path, n)` names it for the n-th, "" for none."""

    def __init__(self, target: str, misfortune: Callable[[str, int], str]) -> None:
        self.target, self.misfortune = urlsplit(target), misfortune
        self.met: Counter[tuple[str, str]] = Counter()  # (kind, last part of the path)
        self._lock, self._count = threading.Lock(), 0

    def next(self, path: str) -> str:
        with self._lock:
            kind = self.misfortune(path, self._count)
            self._count += 1
            self.met[kind, path.rsplit("/", 1)[-1]] += 1
        return kind

    def ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        assert self.target.hostname
        line = http.client.HTTPConnection(self.target.hostname, self.target.port, timeout=300)
        line.request(method, path, body, headers)
        answer = line.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        line.close()
        return found


@contextmanager
def badly(target: str, misfortune: Callable[[str, int], str]) -> Iterator[tuple[str, Proxy]]:
    """A proxy in front of `target`, for the block; gives its URL."""
    proxy = Proxy(target, misfortune)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}
            kind = proxy.next(urlsplit(self.path).path)
            if kind == "lose":
                return self.hang_up()
            if kind in ("429", "503"):
                return self.answer(int(kind), [("content-type", "application/json")], b"{}")
            if kind == "delay":
                time.sleep(1.0)
            for _ in range(2 if kind == "repeat" else 1):
                status, found, text = proxy.ask(self.command, self.path, body, headers)
            if kind == "drop":
                return self.hang_up()
            return self.answer(status, found, text)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def answer(self, status: int, headers: list[tuple[str, str]], text: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in HOPS:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.close()

        def log_message(self, *_: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (OSError, ValueError):  # the client is gone, or we hung up
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
