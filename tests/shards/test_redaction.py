"""Redaction: no secret in addresses, messages, tracebacks, logs and written files."""

import logging
import traceback

import pytest

from shards.errors import ManifestError, ShardUnreadable
from shards.redaction import cause_to_show, redact, scrub, short
from shards.stores.disk_cache import CacheConfig
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.retry import RetryConfig
from shards.stores.shard_listing import list_shards
from shards.stream.manifest import Manifest
from shards.stream.manifest_file import write_manifest
from tests.fault_proxy import LASTING, PASSING, fault_proxy
from tests.hub import DATASET
from tests.stores import tar_bytes, web_server

SECRETS = ("SIGNATURE", "PASSWORD", "SESSIONTOKEN")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/data/a?b#c.tar", "/data/a?b#c.tar"),
        ("s3://bucket/a#1.tar", "s3://bucket/a#1.tar"),
        ("s3://KEY:SECRET@bucket/a.tar", "s3://bucket/a.tar"),
        ("https://user:pw@host:81/a/b.tar?sig=SECRET#SECRET", "https://host:81/a/b.tar"),
        ("https://TOKEN@host/b@c.tar", "https://host/b@c.tar"),
        ("https://host?sig=SECRET", "https://host"),
        ("abfs://container@account.net/a.tar", "abfs://container@account.net/a.tar"),
        ("http://[::1/a.tar?sig=SECRET", "http://[::1/a.tar"),
    ],
)
def test_secrets_of_addresses_are_removed(uri, shown):
    """A signed query in a log or a manifest is a key to the bucket."""
    assert redact(uri) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "GET https://me:pw@host/a.tar?X-Amz-Signature=abc&x=1\nfailed",
            "GET https://host/a.tar?… failed",
        ),
        ("403, url='https://h/a.tar?sig=abc'", "403, url='https://h/a.tar?…"),
        ("https://host/a.tar#token", "https://host/a.tar#…"),
        ("moved to https://a:b/c@host/x", "moved to https://a:b/c@host/x"),
        ("headers: {'Authorization': 'Bearer abc.def'}", "headers: {'Authorization': '…'}"),
        ("x-amz-security-token: abc", "x-amz-security-token: …"),
        ("AWSAccessKeyId=AKIDEXAMPLE&Signature=abc%3D failed", "AWSAccessKeyId=…&Signature=… fa"),
        ("The key AKIAIOSFODNN7EXAMPLE is unknown", "The key … is unknown"),
        ("", "OSError"),
        ("no", "OSError: no"),
        ("what is wrong? nobody knows", "what is wrong? nobody knows"),
    ],
)
def test_secrets_in_messages_of_libraries_are_removed(text, shown):
    """Libraries quote whole addresses and headers in their errors."""
    assert short(OSError(text)).startswith(shown)


@pytest.mark.parametrize(
    "text",
    [
        'Invalid bucket name "KEY:SECRETKEY@bucket"',
        "cannot log in with SECRETKEY",
        "query sig=SECRET%2FVALUE%3D refused",
        "query sig=SECRET/VALUE= refused",
    ],
)
def test_secrets_of_an_address_are_removed_from_any_text(text):
    """Some messages quote only a part of the address."""
    uri = "s3://KEY:SECRETKEY@bucket/a.tar?sig=SECRET%2FVALUE%3D"
    assert "SECRET" not in scrub(text, uri)


def test_a_cause_is_shown_only_if_its_whole_chain_is_safe():
    """A traceback prints every cause of an error."""
    plain, secret = OSError("connection lost"), OSError("GET https://h/a?sig=SIGNATURE")
    assert cause_to_show("s3://b/a.tar", plain) is plain
    assert cause_to_show("https://h/a.tar?sig=SIGNATURE", plain) is None
    plain.__context__ = secret
    assert cause_to_show("s3://b/a.tar", plain) is None
    plain.__suppress_context__ = True
    assert cause_to_show("s3://b/a.tar", plain) is plain
    plain.add_note("asked for https://h/a?sig=SIGNATURE")
    assert cause_to_show("s3://b/a.tar", plain) is None


QUICK = RetryConfig(
    num_attempts=2,
    first_wait_seconds=0.0,
    longest_wait_seconds=0.0,
    connect_timeout_seconds=5.0,
    read_timeout_seconds=0.3,
)


def test_no_fault_of_a_web_server_shows_a_secret(tmp_path, caplog, capfd):
    """One line of one log, at any level, is enough to read the bucket."""
    caplog.set_level(logging.DEBUG)
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "05.tar").write_bytes(tar_bytes(50))
    cache = CacheConfig(folder=str(tmp_path / "cache"), max_bytes=10**7)
    shown = []
    plan = []
    with (
        web_server(shelf) as address,
        fault_proxy(address, lambda _: plan.pop() if plan else None, stall_seconds=1.5) as proxy,
    ):
        host = proxy.address.removeprefix("http://")
        signed = f"http://me:PASSWORD@{host}/secret/05.tar?sig=SIGNATURE&t=SESSIONTOKEN"
        for fault in (*PASSING, *LASTING):
            proxy.lasting.clear()
            reader = RangeReader(SourceConfig(retry=QUICK, cache=cache))
            shards = list_shards(signed, reader.stores)
            write_manifest(Manifest(tuple(shards), 1.0), tmp_path / f"{fault}.parquet")
            shown += [repr(reader.counters), Manifest(tuple(shards), 1.0).digest]
            plan.extend([fault] * 2)
            start = 1 + len(shown)
            try:
                reader.read(shards[0], start, start + 2000)
            except ShardUnreadable as error:
                shown += ["".join(traceback.format_exception(error)), str(error)]
            plan.clear()
        for wrong in (signed.replace("/secret", "/nothing"), signed.replace("SIGN", "SIGM")):
            with pytest.raises(ManifestError) as refused:
                list_shards(wrong, reader.stores)
            shown += ["".join(traceback.format_exception(refused.value)), str(refused.value)]
    written = capfd.readouterr()
    shown += [written.out, written.err, caplog.text]
    files = [path for path in tmp_path.rglob("*") if shelf not in path.parents]
    shown += [str(path) for path in files]
    shown += [path.read_bytes().decode("latin-1") for path in files if path.is_file()]
    assert len(shown) > 80 and any("could not be read" in text for text in shown)
    leaks = [text for text in shown if any(secret in text for secret in (*SECRETS, "SIGMATURE"))]
    assert leaks == []


def test_no_fault_of_s3_shows_a_key(s3, s3_address, monkeypatch, caplog, capfd):
    """The keys of the environment are part of every request."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "SIGNATURE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "PASSWORD")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "SESSIONTOKEN")
    shown, plan = [], []
    with fault_proxy(
        s3_address, lambda _: plan.pop() if plan else None, stall_seconds=1.5
    ) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        reader = RangeReader(SourceConfig(retry=QUICK))
        (shard,) = list_shards("s3://shelf/set/05.tar", reader.stores)
        for fault in ("reset", "stall", "short", "whole_200", "status_500", "slow_down", *LASTING):
            proxy.lasting.clear()
            plan.extend([fault] * 2)
            try:
                reader.read(shard, 100, 2000)
            except ShardUnreadable as error:
                shown += ["".join(traceback.format_exception(error)), str(error)]
            plan.clear()
        for wrong in ("s3://no-such-bucket/*.tar", "s3://shelf/nothing.tar", "s3://a:PASSWORD@b/*"):
            with pytest.raises(ManifestError) as refused:
                list_shards(wrong, reader.stores)
            shown += ["".join(traceback.format_exception(refused.value)), str(refused.value)]
    written = capfd.readouterr()
    shown += [written.out, written.err, caplog.text]
    assert len(shown) > 10
    assert [text for text in shown if any(secret in text for secret in SECRETS)] == []


def test_a_signed_redirect_is_not_shown(fake_hub, caplog, capfd):
    """The user did not give this address, but it is a key to the file."""
    caplog.set_level(logging.DEBUG)
    reader = RangeReader(SourceConfig(retry=QUICK))
    (shard,) = list_shards(f"hf://{DATASET}/set/3.tar", reader.stores)
    reader.read(shard, 0, 100)
    fake_hub.refuses = True
    with pytest.raises(ShardUnreadable, match=r"access to hf://.* was refused \(403") as refused:
        reader.read(shard, 0, 100)
    written = capfd.readouterr()
    shown = [*traceback.format_exception(refused.value), written.out, written.err, caplog.text]
    assert "SIGNATURE" not in "".join(shown)
