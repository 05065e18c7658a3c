"""Failures of stores: waits, renewed credentials, certificates, and remedies that work."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import fsspec
import pytest
from fsspec import config as fsspec_config
from fsspec.implementations.memory import MemoryFileSystem

from shards.errors import ManifestError, ShardUnreadable, StreamStopped
from shards.stores.failures.asked_waits import rate_limit_reset
from shards.stores.failures.error_kinds import classify_error
from shards.stores.range_reader import RangeReader, SourceConfig
from shards.stores.request_counters import RequestCounters
from shards.stores.request_limit import RequestLimiter
from shards.stores.retry import (
    RetriesExhausted,
    RetryConfig,
    RetryingClient,
    call_with_retries,
    throttled_wait,
)
from shards.stores.shard_listing import list_shards
from shards.stores.store_clients import Stores
from tests.hub import DATASET
from tests.loopback import LoopbackServer, QuietHandler, serving
from tests.shards.stores.test_retry import CloudError, http_error, s3_error
from tests.stores import FileHandler, tar_bytes, web_server
from tests.tls import use_tls

QUICK = RetryConfig(num_attempts=3, first_wait_seconds=0.0, longest_wait_seconds=0.0)


class _Store(QuietHandler):
    """S3 bucket with the object set/0.tar; `server.refuse` chooses the error of a request."""

    def do_GET(self):
        self.server.requests.append((self.command, self.path, dict(self.headers.items())))
        code = self.server.refuse(self)
        if code:
            status = {"ExpiredToken": 400, "TokenRefreshRequired": 400, "SlowDown": 503}
            body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self._send(status.get(code, 403), body, {"Content-Type": "application/xml"})
        elif "list-type" in self.path:
            self._send(200, _LISTING, {"Content-Type": "application/xml"})
        else:
            self._send_range(tar_bytes())

    do_HEAD = do_GET

    def _send_range(self, data):
        if "Range" not in self.headers:
            self._send(200, data, {"ETag": '"e"'})
            return
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        about = {"ETag": '"e"', "Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(206, data[first : last + 1], about)

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_LISTING = (
    "<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents><Key>set/0.tar</Key>"
    f"<Size>{len(tar_bytes())}</Size><ETag>&quot;e&quot;</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
).encode()


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """S3 server that records requests; keys are in a file, which a test may write anew."""
    server = LoopbackServer(("127.0.0.1", 0), _Store)
    server.requests, server.refuse = [], lambda _: ""
    server.keys = tmp_path / "credentials"
    _write_keys(server, "OLD")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(server.keys))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setattr(fsspec_config, "conf", fsspec_config.conf)
    with serving(server):
        yield server


def _write_keys(server, name):
    server.keys.write_text(
        f"[default]\naws_access_key_id = {name}\naws_secret_access_key = s\n"
        f"aws_session_token = token-{name}\n"
    )


def use_environment(monkeypatch, **variables):
    """Read FSSPEC_... variables as fsspec does when a command starts."""
    found = {}
    fsspec_config.set_conf_env(found, variables)
    for protocol, options in found.items():
        monkeypatch.setitem(fsspec_config.conf, protocol, options)


# Waits of stores that ask for fewer requests.


@pytest.mark.parametrize("high", [False, True])
def test_a_throttled_request_is_tried_for_minutes(high, monkeypatch):
    """429 without Retry-After ended a run after three seconds."""
    monkeypatch.setattr("shards.stores.retry.random.uniform", lambda a, b: b if high else a)
    waits = []
    with pytest.raises(RetriesExhausted) as exhausted:
        call_with_retries(lambda: fail(http_error(429)), RetryConfig(), sleep=waits.append)
    assert exhausted.value.failure.kind == "throttled"
    assert 120 < sum(waits) < 300
    assert waits[0] < 1 and 10 < max(waits) <= 30 and sorted(waits) == waits
    assert throttled_wait(99, RetryConfig()) == (15.0, 30.0)


def fail(error):
    """Raise `error`."""
    raise error


def test_other_failures_keep_their_attempts_between_throttled_answers():
    """A store that alternates 429 and 500 would be asked for ever, or be given up at once."""
    errors = [http_error(429), http_error(500)] * 4
    retry = RetryConfig(num_attempts=4, num_throttled_attempts=9)
    tried, left = [], list(errors)
    with pytest.raises(RetriesExhausted) as exhausted:
        call_with_retries(lambda: fail(left.pop(0)), retry, sleep=tried.append)
    assert exhausted.value.num_attempts == 8 and exhausted.value.failure.kind == "server"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, 30),
        ({"RateLimit": "limit=100, remaining=5, reset=30"}, 0),
        ({"ratelimit": '"default";r=0;t=31'}, 31),
        (
            {"RateLimit": '"api";r=0;t=55', "ratelimit-policy": '"fixed window";"api";q=500;w=300'},
            55,
        ),
        ({"RateLimit": '"api";r=7;t=55, "files";r=0;t=12'}, 12),
        ({"RateLimit": '"api"; t=14; r=0'}, 14),
        ({"RateLimit-Reset": "17"}, 17),
        ({"RateLimit-Reset": "17", "RateLimit-Remaining": "3"}, 0),
        ({"X-RateLimit-Reset": "18", "X-RateLimit-Remaining": "0"}, 18),
        ({"X-RateLimit-Reset": "DATE"}, 40),
        ({"X-Rate-Limit-Reset": "DATE000"}, 40),
        ({"RateLimit-Reset": "99999"}, 300),
        ({"RateLimit-Reset": "soon"}, 0),
        ({}, 0),
        ({"RateLimit": '"api";r=0;t=55', "Retry-After": "7"}, 7),
    ],
)
def test_the_wait_is_as_long_as_the_rate_limit_says(headers, seconds):
    """The Hub sends no Retry-After; requests within its window prolong it."""
    date = str(int(time.time()) + 40)
    headers = {name: value.replace("DATE", date) for name, value in headers.items()}
    for error in (http_error(429, **headers), s3_error("SlowDown", 503, headers)):
        assert classify_error(error).retry_after == pytest.approx(seconds, abs=2)
    if "Retry-After" not in headers:
        assert classify_error(http_error(500, **headers)).retry_after == 0
        assert rate_limit_reset(headers) == pytest.approx(seconds, abs=2)


@pytest.mark.parametrize("headers", [{}, {"RateLimit": '"api";r=0;t=200'}])
def test_a_wait_for_a_store_ends_when_the_run_is_stopped(headers):
    """Ctrl-C would take minutes while a store asks for fewer requests."""
    retry = RetryConfig(first_wait_seconds=50, longest_wait_seconds=50)
    counters = RequestCounters()
    client = RetryingClient(retry, RequestLimiter(), counters, "s3://b")
    ended = []

    def work():
        try:
            client.call(lambda: fail(http_error(429, **headers)))
        except StreamStopped as error:
            ended.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not counters.snapshot().throttles:
        time.sleep(0.001)
    client.stop()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 3


# Credentials that expired.


@pytest.mark.parametrize(
    "code",
    [
        "ExpiredToken",
        *(
            pytest.param(code, marks=pytest.mark.slow)
            for code in (
                "InvalidToken",
                "RequestExpired",
                "TokenRefreshRequired",
                "ExpiredTokenException",
            )
        ),
    ],
)
def test_a_client_is_made_anew_once_when_its_token_has_expired(bucket, code):
    """A token of an hour ended each run of a day, although the file had a new one."""
    reader = RangeReader(SourceConfig(retry=QUICK))
    (shard,) = list_shards("s3://b/set", reader.stores)
    bucket.refuse = lambda request: "" if "token-NEW" in str(request.headers) else code
    bucket.requests.clear()
    _write_keys(bucket, "NEW")
    assert reader.read(shard, 0, 700) == tar_bytes()[:700]
    assert reader.read(shard, 700, 900) == tar_bytes()[700:900]
    tokens = [headers["X-Amz-Security-Token"] for _, _, headers in bucket.requests]
    assert tokens == ["token-OLD", "token-NEW", "token-NEW"]
    bucket.refuse = lambda _: code
    bucket.requests.clear()
    message = rf"refused \(.*{code}.*\), also by a new client; .* renew them \(AWS_PROFILE"
    with pytest.raises(ShardUnreadable, match=message + ".*AWS_SESSION_TOKEN"):
        reader.read(shard, 0, 700)
    assert len(bucket.requests) == 2


def test_many_threads_make_one_new_client(bucket):
    """Sixteen readers would ask the token service sixteen times."""
    reader = RangeReader(SourceConfig(retry=QUICK))
    (shard,) = list_shards("s3://b/set", reader.stores)
    arrived = threading.Barrier(4)

    def refuse(request):
        if "token-NEW" in str(request.headers):
            return ""
        arrived.wait(20)
        return "ExpiredToken"

    bucket.refuse = refuse
    _write_keys(bucket, "NEW")
    first = reader.stores.open(shard.uri).filesystem
    threads = [threading.Thread(target=reader.read, args=(shard, 0, 700)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert reader.counters.retries == {"refused": 4} and len(bucket.requests) == 1 + 8
    assert reader.stores.open(shard.uri).filesystem is not first
    assert len(reader.stores._replaced) == 1


@pytest.mark.slow
def test_an_expired_token_is_renewed_for_a_single_name_too(bucket):
    """S3 names no code in the answer to HEAD: a plain 400 would be tried five times in vain."""
    bucket.refuse = lambda request: "" if "token-NEW" in str(request.headers) else "ExpiredToken"
    stores = Stores(QUICK)
    with pytest.raises(ManifestError, match=r"check or renew the credentials \(AWS_PROFILE"):
        list_shards("s3://b/set/0.tar", stores)
    assert len(bucket.requests) <= 4  # botocore asks for the region, too
    _write_keys(bucket, "NEW")
    assert [shard.uri for shard in list_shards("s3://b/set/0.tar", stores)] == ["s3://b/set/0.tar"]


class CloudStore(MemoryFileSystem):
    """Store that refuses a client with 401 when it is older than `valid_from`."""

    protocol = "cloud"
    store, pseudo_dirs = {}, [""]
    valid_from, num_made, num_requests = 0, 0, 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).num_made += 1
        self.number = self.num_made

    def cat_file(self, path, start=None, end=None, **kwargs):
        type(self).num_requests += 1
        if self.number < self.valid_from:
            raise CloudError(code=401)
        return super().cat_file(path, start=start, end=end, **kwargs)


@pytest.mark.parametrize("num_more", [1, 9])
def test_the_client_of_any_store_is_made_anew_once(num_more):
    """Google's and Azure's tokens end, too; without a bound a refusal would be asked for ever."""
    fsspec.register_implementation("cloud", CloudStore, clobber=True)
    CloudStore.clear_instance_cache()
    reader = RangeReader(SourceConfig(retry=QUICK))
    fsspec.filesystem("cloud").pipe_file("cloud://data/0.tar", tar_bytes())
    (shard,) = list_shards("cloud://data/0.tar", reader.stores)
    CloudStore.valid_from, CloudStore.num_requests = CloudStore.num_made + num_more, 0
    if num_more == 1:
        assert reader.read(shard, 0, 700) == tar_bytes()[:700]
    else:
        with pytest.raises(ShardUnreadable, match=r"refused \(.*\), also by a new client; it was"):
            reader.read(shard, 0, 700)
    assert CloudStore.num_requests == 2


# The variables that the messages name.


def test_a_signed_address_that_expired_is_signed_again(folder):
    """A signed address needs no credentials, so none may be checked."""
    with web_server(folder) as address:
        reader = RangeReader(SourceConfig(retry=QUICK))
        (shard,) = list_shards(f"{address}/secret/05.tar?key=SIGNATURE", reader.stores)
        old = replace(shard, uri=f"{address}/secret/05.tar?key=EXPIREDVALUE")
        with pytest.raises(ShardUnreadable, match="a signed address expires, so sign it again"):
            reader.read(old, 0, 700)
        with pytest.raises(ManifestError, match="signed address expires, so sign it") as refused:
            list_shards(old.uri, reader.stores)
        assert "EXPIREDVALUE" not in str(refused.value)


def test_a_refused_bucket_names_the_variables_that_help(bucket):
    """A public bucket looked like a wrong password."""
    bucket.refuse = lambda _: "AccessDenied"
    stores = Stores(QUICK)
    variables = {"AWS_PROFILE", "FSSPEC_S3_ANON=true", "FSSPEC_S3_REQUESTER_PAYS=true",
                 "AWS_ENDPOINT_URL=https://..."}  # fmt: skip
    for pattern in ("s3://b/set", "s3://b/set/0.tar", "s3://b/set/*.tar"):
        with pytest.raises(ManifestError, match=r"access to .* was refused") as refused:
            list_shards(pattern, stores)
        assert {name for name in variables if name in str(refused.value)} == variables


@pytest.mark.parametrize(
    ("value", "is_anonymous"),
    [("true", True), ("1", True), ("False", False), ("", False)],
)
def test_fsspec_s3_anon_means_what_it_says(bucket, monkeypatch, value, is_anonymous):
    """`False` would be a word, which is true: a private bucket would be asked without a key."""
    use_environment(monkeypatch, FSSPEC_S3_ANON=value)
    reader = RangeReader(SourceConfig(retry=QUICK))
    (shard,) = list_shards("s3://b/set", reader.stores)
    assert reader.read(shard, 0, 700) == tar_bytes()[:700]
    signed = ["Authorization" in headers for _, _, headers in bucket.requests]
    assert signed == [not is_anonymous] * len(signed) and signed


@pytest.mark.parametrize(("value", "pays"), [("true", True), ("TRUE", True), ("False", False)])
def test_fsspec_s3_requester_pays_is_sent_with_each_request(bucket, monkeypatch, value, pays):
    """A bucket whose readers pay refuses each request without the header."""
    use_environment(monkeypatch, FSSPEC_S3_REQUESTER_PAYS=value)
    reader = RangeReader(SourceConfig(retry=QUICK))
    for pattern in ("s3://b/set", "s3://b/set/0.tar"):
        (shard,) = list_shards(pattern, reader.stores)
    reader.read(shard, 0, 700)
    headers = [{name.lower(): value for name, value in h.items()} for _, _, h in bucket.requests]
    payers = {fields.get("x-amz-request-payer") for fields in headers}
    assert payers == ({"requester"} if pays else {None})


def test_aws_endpoint_url_chooses_the_service(bucket):
    """Another S3 service would never be asked; the fixture sets the variable."""
    assert len(list_shards("s3://b/set", Stores(QUICK))) == 1
    assert bucket.requests[0][1].startswith("/b?list-type=2")


def test_aws_profile_chooses_the_keys(bucket, monkeypatch):
    """The remedy would not work; and a profile that is not there would be asked for five times."""
    with bucket.keys.open("a") as file:
        file.write("[other]\naws_access_key_id = THEIRS\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert len(list_shards("s3://b/set", Stores(QUICK))) == 1
    assert "Credential=THEIRS/" in bucket.requests[0][2]["Authorization"]
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    stores = Stores(QUICK)
    with pytest.raises(
        ManifestError, match=r"refused \(The .* profile \(nobody\) could not be found"
    ):
        list_shards("s3://b/set", stores)
    assert stores.counters.snapshot().retries == {}


# Repositories of the Hub.

ACCEPT = (
    r"is in a gated repository; .*: accept them on https://huggingface\.co/datasets/me/set, then "
    r"log in with `hf auth login`, or HF_TOKEN=hf_"
)
PRIVATE = (
    r"the Hub shows no such repository; it does not exist, or it is private: check the name on "
    r"https://huggingface\.co/datasets/me/set .*, or log in .*: `hf auth login`, or HF_TOKEN=hf_"
)
REVISION = (
    r"the repository has no such revision; give a branch, tag or commit that https://.*me/set"
)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo", ""), ACCEPT),
        ((401, "GatedRepo", ""), ACCEPT),
        ((401, "RepoNotFound", ""), PRIVATE),
        ((404, "RepoNotFound", ""), PRIVATE),
        ((401, "", ""), PRIVATE),
        ((404, "RevisionNotFound", ""), REVISION),
        (
            (403, "", "Access to this resource is disabled."),
            "has disabled this repository, see https",
        ),
        (
            (401, "", "Invalid credentials in Authorization header"),
            "renew the credentials: `hf auth",
        ),
    ],
)
@pytest.mark.parametrize("name", ["set", "set/0.tar", "set/{0..9}.tar", "set/*.tar"])
def test_a_repository_that_the_hub_does_not_show_says_why(fake_hub, refusal, message, name):
    """A data set whose terms were not accepted looked like a spelling mistake."""
    fake_hub.refusal = refusal
    with pytest.raises(ManifestError, match=message):
        list_shards(f"hf://{DATASET}/{name}", Stores(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["set", "set/*.tar"])
def test_a_hub_that_asks_for_fewer_requests_is_asked_again(fake_hub, monkeypatch, name):
    """A folder was called missing, because its Hub did not answer."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # has its own
    fake_hub.num_throttled = 9
    stores = Stores(QUICK)
    assert len(list_shards(f"hf://{DATASET}/{name}", stores)) == 10
    assert fake_hub.num_throttled == 0 and set(stores.counters.snapshot().retries) == {"throttled"}


def test_a_repository_that_becomes_gated_ends_the_run_with_that_reason(fake_hub):
    """The credentials were blamed, which are valid."""
    reader = RangeReader(SourceConfig(retry=QUICK))
    (shard,) = list_shards(f"hf://{DATASET}/set/3.tar", reader.stores)
    fake_hub.refusal = (403, "GatedRepo", "")
    with pytest.raises(ShardUnreadable, match=ACCEPT + r".*; then start the same command again"):
        reader.read(shard, 0, 700)
    fake_hub.refusal = (404, "EntryNotFound", "")
    with pytest.raises(ShardUnreadable, match=r"set/3\.tar is gone"):
        reader.read(shard, 0, 700)


def test_a_file_that_a_repository_lacks_is_named(fake_hub):
    """The repository would be blamed for a wrong file name."""
    with pytest.raises(ManifestError, match=r"set/77\.tar does not exist; give a folder"):
        list_shards(f"hf://{DATASET}/set/77.tar", Stores(QUICK))


# Certificates.

READ = """
import sys
from shards.errors import ManifestError
from shards.stores.range_reader import RangeReader
from shards.stores.shard_listing import list_shards
reader = RangeReader()
try:
    (shard,) = list_shards(sys.argv[1], reader.stores)
except ManifestError as error:
    print(error)
else:
    print(len(reader.read(shard, 0, 700)))
"""


@pytest.fixture(params=["http", *(pytest.param(n, marks=pytest.mark.slow) for n in ("s3", "hf"))])
def secure(request, tmp_path, monkeypatch):
    """(address of a shard, variable, file of the certificate) of a server that signs itself."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "0.tar").write_bytes(tar_bytes())
    if request.param == "s3":
        server = request.getfixturevalue("bucket")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address.replace("http", "https"))
        yield "s3://b/set/0.tar", "AWS_CA_BUNDLE", use_tls(server, tmp_path)
    elif request.param == "hf":
        server = request.getfixturevalue("fake_hub")
        address = server.address.replace("http", "https")
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        yield f"hf://{DATASET}/set/0.tar", "SSL_CERT_FILE", use_tls(server, tmp_path)
    else:

        def handle(*arguments):
            return FileHandler(*arguments, directory=str(tmp_path))

        server = LoopbackServer(("127.0.0.1", 0), handle)
        file = use_tls(server, tmp_path)
        with serving(server):
            yield server.address.replace("http", "https") + "/set/0.tar", "SSL_CERT_FILE", file


def test_a_certificate_is_tried_once_and_the_message_names_what_helps(
    secure, tmp_path, monkeypatch
):
    """A proxy of a company signs each certificate anew: five attempts, and no word of the remedy;
    and a missing file of certificates looked like a missing shard."""
    uri, variable, certificate = secure
    stores = Stores(RetryConfig(num_attempts=5, first_wait_seconds=9.0))
    with pytest.raises(ManifestError, match=rf"was not accepted \(.*\); .* {variable}=/path/to"):
        list_shards(uri, stores)
    assert stores.counters.snapshot().retries == {}
    missing = tmp_path / "missing.pem"
    monkeypatch.setenv(variable, str(missing))
    with pytest.raises(ManifestError, match=rf"^{variable}={missing} does not exist; name a file"):
        list_shards(uri, Stores(QUICK))
    for file, told in ((missing, f"{variable}={missing} does not exist"), (certificate, "700\n")):
        # Libraries read the variable when they are imported.
        done = subprocess.run(
            [sys.executable, "-c", READ, uri],
            env=os.environ | {variable: str(file)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert told in done.stdout, done.stdout + done.stderr
