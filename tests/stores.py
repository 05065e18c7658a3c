"""Stores on loopback: an S3 server, and a web server of files."""

import http.server
import io
import logging
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from tests.loopback import LoopbackServer, QuietHandler, serving
from tests.tars import make_tar

KEYS = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def tar_bytes(num: int = 3, fill: bytes = b"x") -> bytes:
    """Return a small tar of `num` samples."""
    return make_tar([(f"{index}.jpg", fill * 600) for index in range(num)])


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the address of an empty S3 server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_s3(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment to that server, with dummy keys."""
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": address}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def connect(address: str) -> Any:
    """Return a client of that server."""
    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id="none",
        aws_secret_access_key="none",
        region_name="us-east-1",
    )


def put_many(bucket: str, keys: Iterable[str], body: bytes) -> None:
    """Write objects into the S3 server of this process, without a request for each."""
    backend = s3_backends["123456789012"]["aws"]
    for key in keys:
        backend.put_object(bucket, key, body)


class FileHandler(QuietHandler, http.server.SimpleHTTPRequestHandler):
    """Files with ranges and etags, unless the path begins with a special folder.

    /secret needs a query; /flat has no ranges; /dated has dates instead of etags; /bare has
    neither; /closed refuses HEAD; /endless sends no length; /packed declares gzip encoding.
    """

    def do_HEAD(self) -> None:
        if self.path.startswith("/closed"):
            self._refuse(403)
        else:
            super().do_HEAD()

    def send_head(self) -> Any:
        path, _, query = self.path.partition("?")
        place, _, rest = path[1:].partition("/")
        known = place in ("secret", "flat", "dated", "bare", "closed", "endless", "packed")
        if place == "secret" and "SIGNATURE" not in query:
            return self._refuse(403)
        file = Path(self.directory, rest if known else path[1:])
        if not file.is_file():
            return super().send_head() if file.is_dir() else self._refuse(404)
        tag = f'"{blake2b(file.read_bytes(), digest_size=8).hexdigest()}"'
        has_tag = place not in ("dated", "bare")
        if has_tag and self.headers.get("If-Match", tag) != tag:
            return self._refuse(412)
        return self._send(file, tag if has_tag else "", place)

    def _send(self, file: Path, tag: str, place: str) -> Any:
        total = file.stat().st_size
        wanted = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = 0, total - 1
        if wanted is not None and place not in ("flat", "endless"):
            first, last = int(wanted[1]), min(int(wanted[2]), total - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{total}")
        else:
            self.send_response(200)
        if place == "packed":
            self.send_header("Content-Encoding", "gzip")
        if place == "endless":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(last - first + 1))
        if tag:
            self.send_header("ETag", tag)
        elif place == "dated":
            self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
        self.end_headers()
        return io.BytesIO(file.read_bytes()[first : last + 1])

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def copyfile(self, source: Any, outputfile: Any) -> None:
        outputfile.write(source.read())


class BusyHandler(FileHandler):
    """Files of a slow server that throttles more than three concurrent requests."""

    places = threading.BoundedSemaphore(3)
    num_refused = 0

    def do_GET(self) -> None:
        if not self.places.acquire(blocking=False):
            type(self).num_refused += 1
            self._refuse(503)
            return
        try:
            time.sleep(0.005)
            super().do_GET()
        finally:
            self.places.release()


@contextmanager
def web_server(folder: Path, handler: type[FileHandler] = FileHandler) -> Iterator[str]:
    """Yield the address of a web server of that folder."""

    def handle(*args: Any) -> FileHandler:
        return handler(*args, directory=str(folder))

    with serving(LoopbackServer(("127.0.0.1", 0), handle)) as server:
        yield server.address
