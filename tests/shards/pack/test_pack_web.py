"""Downloads of images from a real web server on loopback, with the faults of the web."""

import json
import socket
import threading
import time
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import ConfigError, PackFailed
from shards.pack.fetch import FetchError, ImageFetcher
from shards.pack.image_entries import entries_from_list
from shards.pack.pack import PackConfig, pack
from shards.pack.table_entries import entries_from_parquet
from shards.stores.image_download import DownloadConfig, ImageDownloader
from tests.loopback import LoopbackServer, QuietHandler, serving
from tests.shards.pack.test_pack import jpeg, read_samples, shard_bytes

QUICK = DownloadConfig(timeout_seconds=0.3, total_seconds=0.6, num_attempts=2, max_bytes=20_000)
PATIENT = replace(QUICK, timeout_seconds=5.0, total_seconds=5.0)


class Server(LoopbackServer):
    """Server that chooses its answer by the first part of the path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.num_busy, self.max_busy = Counter(), 0, 0
        self.lock = threading.Lock()


class Handler(QuietHandler):
    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests[self.path] += 1
            server.num_busy += 1
            server.max_busy = max(server.max_busy, server.num_busy)
        try:
            word, _, rest = self.path[1:].partition("/")
            getattr(self, f"answer_{word}", self.answer_missing)(rest)
        except OSError:
            self.close_connection = True
        finally:
            with server.lock:
                server.num_busy -= 1

    def send(self, data, status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def answer_good(self, rest):
        self.send(jpeg(int(rest.partition("?")[0].partition(".")[0])))

    def answer_calm(self, rest):
        time.sleep(0.02)
        self.answer_good(rest)

    def answer_page(self, _):
        self.send(b"<!doctype html><title>Not here any more</title>", Content_Type="image/jpeg")

    def answer_missing(self, _):
        self.send(b"no", 404)

    def answer_busy(self, rest):
        if self.server.requests[self.path] < 2:
            self.send(b"later", 503, Retry_After="0")
        else:
            self.answer_good(rest)

    def answer_throttled(self, rest):
        if self.server.requests[self.path] < 6:
            self.send(b"later", 429, **({"RateLimit": '"api";r=0;t=0'} if "2" in rest else {}))
        else:
            self.answer_good(rest)

    def answer_banned(self, _):
        self.send(b"never", 429)

    def answer_down(self, _):
        self.send(b"never", 503)

    def answer_slow(self, _):
        time.sleep(1)

    def answer_drip(self, _):
        self.send_response(200)
        self.send_header("Content-Length", "9000")
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b"\xff")
            time.sleep(0.1)

    def answer_headers(self, _):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Never: ")
        for _ in range(40):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def answer_short(self, _):
        self.send(jpeg(1)[:500], Content_Length=9000)
        self.close_connection = True

    def answer_long(self, _):
        self.send(b"\xff" * 100, Content_Length=10**9)

    def answer_endless(self, _):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            self.wfile.write(b"1000\r\n" + b"\xff" * 4096 + b"\r\n")

    def answer_moved(self, rest):
        self.send(b"", 302, Location=f"/good/{rest}")

    def answer_thief(self, _):
        self.send(b"", 302, Location="file:///etc/hostname")

    def answer_loop(self, _):
        self.send(b"", 302, Location=self.path)


@pytest.fixture(scope="module")
def server():
    """Server whose count of requests starts at zero for each test."""
    with serving(Server()) as server:
        yield server


@pytest.fixture(autouse=True)
def _reset(server):
    server.requests.clear()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return closed.getsockname()[1]


@pytest.mark.parametrize(
    ("path", "reason", "num_requests"),
    [
        ("missing/1.jpg", "http_404", 1),
        ("down/1.jpg", "http_503", 2),
        ("slow/1.jpg", "timeout", 2),
        ("drip/1.jpg", "timeout", 2),
        ("headers/1.jpg", "timeout", 2),
        ("short/1.jpg", "broken_connection", 2),
        ("long/1.jpg", "too_many_bytes", 1),
        ("endless/1.jpg", "too_many_bytes", 1),
        ("thief/1.jpg", "bad_address", 1),
        ("loop/1.jpg", "too_many_redirects", 10),
    ],
)
def test_a_failed_download_has_a_reason_in_bounded_time(server, path, reason, num_requests):
    """One slow server would block ten thousand images; an endless body would fill the memory."""
    began = time.monotonic()
    config = QUICK if reason == "timeout" else PATIENT
    with ImageDownloader(config) as web, pytest.raises(FetchError) as caught:
        web.get(f"{server.address}/{path}")
    assert caught.value.reason == reason
    # On a busy machine a quick attempt may end before its request is sent.
    fewest = 1 if reason == "timeout" else num_requests
    assert fewest <= server.requests[f"/{path}"] <= num_requests
    assert time.monotonic() - began < 8


def test_a_host_that_asks_for_fewer_requests_is_waited_for_but_not_for_ever(server, monkeypatch):
    """A busy host would lose its images after two requests; one that bans us would be asked for
    minutes for each of a million images."""
    monkeypatch.setattr("shards.stores.image_download._FIRST_WAIT_SECONDS", 0.001)
    with ImageDownloader(PATIENT) as web:
        for number in (1, 2):
            assert web.get(f"{server.address}/throttled/{number}.jpg") == jpeg(number)
        monkeypatch.setattr("shards.stores.image_download._MAX_THROTTLED_SECONDS", 0.05)
        for number in (1, 2):
            with pytest.raises(FetchError, match="http_429") as caught:
                web.get(f"{server.address}/banned/{number}.jpg")
            assert caught.value.lost
    assert server.requests["/banned/1.jpg"] > 2 and server.requests["/banned/2.jpg"] == 1


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("file:///etc/hostname", "bad_address"),
        ("simplecache::file:///etc/hostname", "bad_address"),
        ("http://", "bad_address"),
        ("http://[::1/x.jpg", "bad_address"),
        ("http://127.0.0.1:99999/x.jpg", "bad_address"),
        ("://", "bad_address"),
        pytest.param(f"http://127.0.0.1:{closed_port()}/x.jpg", "unreachable", id="closed port"),
        ("http://no-such-host.invalid/x.jpg", "no_such_host|unreachable"),
    ],
)
def test_invalid_addresses_have_a_reason(address, reason):
    """A list from the web could read files of this machine."""
    with ImageFetcher(QUICK) as fetcher, pytest.raises(FetchError, match=reason):
        fetcher.address(address)


def test_transient_failures_are_retried_and_redirects_followed(server):
    """Images of a busy server would be lost."""
    with ImageDownloader(QUICK) as web:
        assert web.get(f"{server.address}/busy/3.jpg") == jpeg(3)
        assert web.get(f"{server.address}/moved/4.jpg") == jpeg(4)
    assert server.requests["/busy/3.jpg"] == 2


def make_table(path, urls, **columns):
    pq.write_table(pa.table({"url": urls, **columns}), path)
    return str(path)


def test_a_table_of_addresses_becomes_samples_with_labels_and_captions(server, tmp_path):
    """Captions and ids would be joined with another image."""
    urls = [f"{server.address}/good/{i}.jpg?signature=secret{i}" for i in range(6)]
    urls[4] = f"{server.address}/page/4.jpg"
    file = make_table(
        tmp_path / "in.parquet",
        urls,
        uid=[f"{i:032x}" for i in range(6)],
        caption=["a cat", "ein Hündchen", None, "", "x", "y"],
        label=["cat", "dog", "cat", "cat", "dog", "dog"],
        similarity=[0.5, float("nan"), 0.25, 1.0, 2.0, 3.0],
    )
    source = entries_from_parquet([file])
    config = PackConfig(samples_per_shard=4)
    report = pack(source, tmp_path / "out", config, download=QUICK)
    assert (report.num_samples, report.num_shards) == (5, 2)
    assert report.skipped == {"not_an_image": 1}
    samples = {s["__key__"]: s for s in read_samples(tmp_path / "out")}
    assert set(samples) == {f"{i:032x}" for i in (0, 1, 2, 3, 5)}
    for number, sample in ((int(key, 16), sample) for key, sample in samples.items()):
        assert sample["jpg"] == jpeg(number)
        assert sample["cls"] == str(int(number in (1, 5))).encode()
        assert json.loads(sample["json"]) == {"uid": sample["__key__"]}
    assert samples[f"{1:032x}"]["txt"].decode() == "ein Hündchen"
    assert "txt" not in samples[f"{2:032x}"] and samples[f"{3:032x}"]["txt"] == b""
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"secret" not in written


def test_the_order_of_responses_changes_no_byte(server, tmp_path):
    """Shards in the order of responses could not be made again."""
    lines = [f"{server.address}/{'calm' if i % 3 else 'good'}/{i}.jpg" for i in range(20)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source, made = entries_from_list(tmp_path / "list.txt"), []
    for connections in (1, 16):
        out = tmp_path / str(connections)
        download = DownloadConfig(connections=connections)
        report = pack(source, out, PackConfig(samples_per_shard=8), download=download)
        assert report.num_samples == 20
        made.append(shard_bytes(out))
    assert made[0] == made[1]


def test_concurrent_requests_to_a_host_are_limited(server, tmp_path):
    """A small server would break down, and its images would be lost."""
    (tmp_path / "list.txt").write_text(
        "\n".join(f"{server.address}/calm/{i}.jpg" for i in range(24))
    )
    source = entries_from_list(tmp_path / "list.txt")
    server.max_busy = 0
    pack(source, tmp_path / "out", download=DownloadConfig(connections=32, per_host=3))
    assert 1 < server.max_busy <= 3


def test_a_network_outage_stops_the_pack_which_can_be_resumed(server, tmp_path):
    """An hour without a network would leave a gap in the data set."""
    lines = [f"{server.address}/{'down' if 10 <= i < 20 else 'good'}/{i}.jpg" for i in range(30)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    source, out = entries_from_list(tmp_path / "list.txt"), tmp_path / "out"
    config = PackConfig(samples_per_shard=10, seed=None)
    message = r"10 of 10 images of shard-000001\.tar were lost .*\(10 http_503\), at most 50%"
    with pytest.raises(PackFailed, match=message + ".*start the same command again when"):
        pack(source, out, config, download=QUICK)
    assert sorted(shard_bytes(out)) == ["shard-000000.tar"]
    patient = DownloadConfig(num_attempts=1, max_bytes=QUICK.max_bytes, max_lost_fraction=1.0)
    report = pack(source, out, config, download=patient)
    assert (report.num_found, report.num_samples, report.skipped) == (1, 20, {"http_503": 10})
    sidecar = json.loads((out / "shard-000001.json").read_text())
    assert sidecar["left_out"] == {"http_503": lines[10:20]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"connections": 0}, "connections=0; it must be at least 1"),
        ({"timeout_seconds": 0}, "timeout_seconds=0; it must be more than 0"),
        ({"max_lost_fraction": 2}, "max_lost_fraction=2; it must be from 0 to 1"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    """A download without connections would wait forever."""
    with pytest.raises(ConfigError, match=message):
        DownloadConfig(**settings)
