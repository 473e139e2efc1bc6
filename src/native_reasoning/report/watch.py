"""``nrt report --watch``: the page on this machine alone, made anew while a run trains."""

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from native_reasoning.config.errors import ConfigError, NativeReasoningError
from native_reasoning.records.folder import EVALUATIONS, TRACES
from native_reasoning.report.page import build
from native_reasoning.report.runs import load_run

HOST = "127.0.0.1"
#: A page is made anew at the earliest after this many times as long as the last took to make.
REST = 5.0
#: What a page is made of, in a run folder.
FILES = ("*.yaml", "*.jsonl", f"{TRACES}/*.parquet", f"{EVALUATIONS}/*.parquet")


class Pages:
    """The newest page of some run folders, made when it is asked for and the folders changed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [*paths]
        self._lock = threading.Lock()
        self._version, self._page = "", b""
        self._next = 0.0

    def newest(self) -> tuple[str, bytes]:
        """Version and page. Raises RunError where a folder holds no run any more."""
        with self._lock:
            version = self.version()
            if version != self._version and time.monotonic() >= self._next:
                began = time.monotonic()
                self._page = build([load_run(path) for path in self.paths], watch=version)
                self._version = version
                self._next = time.monotonic() + REST * (time.monotonic() - began)
            return self._version, self._page

    def version(self) -> str:
        """Changes when a file does that a page is made of."""
        seen = hashlib.sha256()
        files = (file for path in self.paths for kind in FILES for file in sorted(path.glob(kind)))
        for file in files:
            with suppress(FileNotFoundError):  # renamed or cut back just now
                stat = file.stat()
                seen.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
        return seen.hexdigest()[:24]


def server(paths: Sequence[Path], port: int = 0) -> ThreadingHTTPServer:
    """A server of ``Pages`` on ``HOST``; port 0 is a free one. Raises ConfigError for a taken one.

    Names other than this machine's own are refused: a page elsewhere on the web could otherwise
    have a browser read from here under a name of its own.
    """
    pages = Pages(paths)
    pages.newest()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").partition(":")[0]
            if host not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self._answer()

        def _answer(self) -> None:
            try:
                version, page = pages.newest()
            except (NativeReasoningError, OSError):
                self.send_error(503, "The run folder cannot be read")
                return
            tag = f'"{version}"'
            fresh = self.headers.get("If-None-Match") != tag
            self.send_response(200 if fresh else 304)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            if fresh:
                self.send_header("Content-Length", str(len(page)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("ETag", tag)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            if fresh:
                with suppress(ConnectionError):  # the reader has left
                    self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"port {port} cannot be used: {error}",
            why="the page is served there",
            fix="another --port, or none: a free one is found",
        ) from error


def serve(paths: Sequence[Path], port: int, told: Callable[[str], None]) -> None:
    """Serves until it is interrupted; ``told`` gets the address."""
    with server(paths, port) as running:
        told(f"http://{HOST}:{running.server_port}/")
        running.serve_forever()
