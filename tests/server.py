"""A small web server for rasters and documents, which counts and fails as it is told to, and a STAC API."""

import itertools
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HEADER = 16384
"""Bytes that GDAL reads of any file to see what it is."""
STALL = 20
"""Seconds."""
NUMBERS = itertools.count()


class Server(ThreadingHTTPServer):
    """Files over HTTP with ranges; counts what it sends and fails where it is told to."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.folder = f"/{next(NUMBERS)}"
        """GDAL remembers addresses for as long as the process lives: each server has its own."""
        self.sent = 0
        self.asked: list[str] = []
        self.deaf = 0
        """So many requests for the headers alone get no answer."""
        self.status = "404"
        """The answer where there is no file."""
        self.refused: dict[str, str] = {}
        """{file: status} of those that are there and not given."""
        self.faults: list[str] = []
        """What happens to the next requests for a range or a document: drop, cut, stall in the middle, or a status."""

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{self.folder}"

    @property
    def url(self) -> str:
        """Of the first file."""
        return f"{self.root}/{next(iter(self.files))}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *words: object) -> None:
        pass

    def do_HEAD(self) -> None:
        if self.server.deaf:
            self.server.deaf -= 1
            self.close_connection = True
        else:
            self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        server = self.server
        server.asked.append(self.path)
        name = self.path.split("?")[0].removeprefix(f"{server.folder}/")
        content = server.files.get(name, b"")
        span = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        fault = server.faults.pop(0) if (span or name.endswith(".json")) and server.faults else ""
        found = name in server.files and name not in server.refused
        if fault == "drop":
            self.close_connection = True
            return
        if fault.isdigit() or not found:
            self.send_response(int(fault if found else server.refused.get(name, server.status)))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        part = content[int(span[1]) : int(span[2]) + 1] if span else content
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {span[1]}-{int(span[1]) + len(part) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if fault in ("cut", "stall"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            time.sleep(STALL if fault == "stall" else 0)
            self.close_connection = True
        elif self.command == "GET":
            server.sent += len(part)
            self.wfile.write(part)


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """A server of these files ({name: content}) while the block runs."""
    with Server(files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def api(folder: Path, items: list[dict]) -> Iterator[str]:
    """A STAC API of these items: the server of the PyPI package rustac, on loopback."""
    held = folder / "held.json"
    held.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("rustac")
    command = [program, "serve", "--addr", place, "--create-collections", held]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                try:
                    urllib.request.urlopen(f"http://{place}/", timeout=5).close()
                    break
                except urllib.error.URLError:
                    time.sleep(0.05)
            yield f"http://{place}"
        finally:
            process.terminate()
