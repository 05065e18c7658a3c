"""Hugging Face Hub on loopback with one data set, and the part of its API that readers use."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1, sha256
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import LoopbackServer, QuietHandler, serving

DATASET = "datasets/me/set"


class Hub(LoopbackServer):
    """Server of `files`, which a test may change; `requests` lists the requested paths.

    Files in set/ are large: the Hub redirects to a signed address. `tag` returns the version that
    it sends for a file.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.requests = files, list[str]()
        self.refuses = False  # True if the signed addresses have expired
        self.num_throttled = 0  # requests that are answered with 429 before the others
        # Status, X-Error-Code and X-Error-Message of each answer.
        self.refusal: tuple[int, str, str] | None = None
        self.tag: Callable[[bytes], str] = lambda data: sha256(data).hexdigest()


class _Handler(QuietHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(path)
        files = self.server.files
        if self.server.num_throttled:
            self.server.num_throttled -= 1
            self._refuse(429, "", "")
        elif self.server.refusal is not None:
            self._refuse(*self.server.refusal)
        elif path in (f"/api/{DATASET}", f"/api/{DATASET}/revision/main"):
            self._send_json({"id": "me/set", "sha": "0" * 40, "siblings": []})
        elif tree := re.fullmatch(rf"/api/{DATASET}/tree/main/?(.*)", path):
            rows = self._tree(tree[1], "recursive=true" in self.path.lower())
            self._send_json(rows, 200 if rows else 404)
        elif (name := path.removeprefix(f"/{DATASET}/resolve/main/")) in files:
            self._send_or_redirect(name)
        elif path.startswith("/elsewhere/") and self.server.refuses:
            self._send_json({}, 403)
        elif (name := path.removeprefix("/elsewhere/")) in files:
            self._send_file(files[name], {"ETag": '"of-another-server"'})
        else:
            self._send_json({}, 404)

    def do_POST(self) -> None:
        self.server.requests.append(self.path)
        if self.server.refusal is not None:
            self._refuse(*self.server.refusal)
            return
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        names = parse_qs(body)["paths"]
        self._send_json([self._row(name) for name in names if name in self.server.files])

    def _tree(self, folder: str, recursive: bool) -> list[dict[str, Any]]:
        below = [name for name in self.server.files if name.startswith(f"{folder}/") or not folder]
        if recursive or folder:  # no folders within folders here
            return [self._row(name) for name in below]
        folders = {name.partition("/")[0] for name in below}
        return [{"type": "directory", "oid": "0", "size": 0, "path": name} for name in folders]

    def _row(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        row = {"type": "file", "oid": sha1(data).hexdigest(), "size": len(data), "path": name}
        if name.startswith("set/"):
            large = {"size": len(data), "oid": sha256(data).hexdigest(), "pointerSize": 134}
            row |= {"lfs": large}
        return row

    def _send_or_redirect(self, name: str) -> None:
        data = self.server.files[name]
        if not name.startswith("set/"):
            self._send_file(data, {"ETag": f'"{sha1(data).hexdigest()}"'})
            return
        headers = {"Location": f"/elsewhere/{name}?Signature=SIGNATURE"}
        if tag := self.server.tag(data):
            headers |= {"X-Linked-Etag": f'"{tag}"'}
        self._send(302, b"", headers)

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        first, last = map(int, re.findall(r"\d+", self.headers["Range"]))
        about = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], headers | about)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, b"{}", {name: value for name, value in headers.items() if value})

    def _send_json(self, answer: object, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """Run a Hub with these files."""
    with serving(Hub(files)) as server:
        yield server
