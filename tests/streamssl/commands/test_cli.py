"""The command line: a mistake is one sentence and exit code 2, and nothing is left behind."""

import gzip
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from streamssl.cli import main
from streamssl.config.run_config import read_toml, write_toml
from streamssl.evaluation.scores import newest_score
from tests.tinyrun import make_shards, proof, tiny_moco, tiny_swav

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A file with a run of six steps, which is a RECIPE."""
    write_toml(tiny_swav(), tmp_path / "tiny.toml")
    return str(tmp_path / "tiny.toml")


def refused(capsys: Capture, *arguments: object) -> str:
    """The sentence that a command answers with; exit code 2, one line, no stack."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("streamssl: ") and text.endswith("\n")
    assert "Traceback" not in text
    return text.removeprefix("streamssl: ").rstrip("\n")


def refused_start(capsys: Capture, recipe: str, data: object, out: Path, *more: object) -> str:
    """The same of `pretrain`; the run folder is not touched."""
    before = sorted(out.rglob("*")) if out.exists() else None
    text = refused(capsys, "pretrain", recipe, "--data", data, "--out", out, "--readers", 1, *more)
    assert (sorted(out.rglob("*")) if out.exists() else None) == before
    return text


def shown(capsys: Capture, *arguments: object) -> str:
    """What a command prints when all is well."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


# Words that do not fit.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("pretrin", "unknown command `streamssl pretrin`; did you mean 'pretrain'? known are"),
        ("evaluate knm", "unknown command `streamssl evaluate knm`; did you mean 'knn'? known are"),
        ("shards pakc", "unknown command `streamssl shards pakc`; did you mean 'pack'? known are"),
        ("pretrain swab", "unknown recipe 'swab'; did you mean 'swav'? known are swav, "),
        ("pretrain no.toml", "no.toml cannot be read as a configuration"),
        ("pretrain swav --out x", "--data is missing; `streamssl pretrain swav --help` lists"),
        ("pretrain swav --data x", "--out is missing; `streamssl pretrain swav --help` lists"),
        ("pretrain swav --data x --out x --lr 3", "unknown option --lr; "),
        (
            "pretrain swav --data x --out x --precision fp8",
            "--precision='fp8'; allowed are ('fp32', 'bf16'); ",
        ),
        (
            "pretrain swav --data x --out x --optim.base-lr fast",
            "--optim.base-lr='fast'; it must be a number; ",
        ),
        ("pretrain swav --data x --out x --optim.base-lr -1", "base_lr=-1.0; it must not be neg"),
        ("pretrain swav --data x --out x --num-steps 0", "num_steps=0; it must be at least 1"),
        ("pretrain swav --data x --out x --readers 0", "--readers 0: a number from 1 on"),
        ("pretrain swav --data x --out x --cluster k8s", "cluster='k8s'; it must be none, local, "),
        ("pretrain swav --data x --out x --decode gpu", "--decode='gpu'; allowed are "),
        ("pretrain swav --data x --out x --decode auto", "--decode with cluster='none', which is"),
        ("pretrain swav --data x --out x --metrics-port 99999", "metrics_port=99999; it must be"),
        ("pretrain swav --data x --out x --backbone.name resnet5", "near it are resnet50"),
        ("evaluate knn --run x", "--train is missing; `streamssl evaluate knn --help` lists"),
        (
            "pretrain swav --data a b --out x --weights 1",
            "1 weights for 2 patterns of --data; each",
        ),
        (
            "pretrain swav --data a b --out x --weights 1 x",
            "weight 'x' is no number; 0.7, 3 or 1/3",
        ),
        (
            "pretrain swav --data a --out x --cache c --cache-bytes 0",
            "cache max_bytes=0; it must be",
        ),
        ("pretrain swav --data a --out x --num-samples 9", "9 with --sizes given; it is how many"),
        ("pretrain swav --data a --out x --subset l.csv", "l.csv'; it must be a .parquet, .txt or"),
        ("shards verify x --threads 0", "threads=0; it must be at least 1"),
        ("shards stats x --sample 0", "sample=0; it must be at least 1 chunk; leave it out"),
        ("shards stats no/such/folder", "no/such/folder"),
        ("shards pack no/such/folder x", "no/such/folder is not a folder"),
        ("demo --num-train 3", "num_train=3 and num_test=1500; the demo needs at least 512"),
    ],
)
def test_a_word_that_does_not_fit_is_one_sentence(
    arguments: str, expected: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found, allowed, remedy, on one line; and no file appears."""
    monkeypatch.chdir(tmp_path)
    text = refused(capsys, *arguments.split())
    assert expected in text and "\n" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        *("", "pretrain", "pretrain swav", "pretrain moco-v2-small", "evaluate", "evaluate knn"),
        *("shards", "shards pack", "shards verify", "shards stats", "demo"),
    ],
)
def test_every_command_has_help(command: str, capsys: Capture) -> None:
    """Help is printed where a pipe finds it, and is no failure."""
    try:
        code = main([*command.split(), "--help"])
    except SystemExit as left:
        code = left.code or 0
    captured = capsys.readouterr()
    assert code == 0 and captured.err == ""
    assert "usage" in captured.out.lower()


# Data that cannot be trained on.


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_data_that_is_not_there_is_one_sentence(
    recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """A pattern without a match, and a folder without a shard."""
    out = tmp_path / "run"
    text = refused_start(capsys, recipe, tmp_path / "*.tar", out)
    assert re.search(r"no shard matches '.*\*\.tar'; give a folder, a glob", text)
    assert "nowhere" in refused_start(capsys, recipe, tmp_path / "nowhere", out)
    (tmp_path / "empty").mkdir()
    text = refused_start(capsys, recipe, tmp_path / "empty", out)
    assert "no image found in" in text


def test_shards_that_are_none_are_one_sentence(
    recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """Text, gzip, nothing, and a tar without an image: each names the shard."""
    cases = {
        "text": b"no tar at all" * 100,
        "zip": gzip.compress(b"x" * 9000),
        "nil": b"",
        "hollow": write_tar(tmp_path / "x", {}).read_bytes(),
    }
    expected = {
        "text": r"text\.tar is not a tar: .*streamssl shards pack",
        "zip": r"zip\.tar is not a tar: it begins with a gzip file; .*streamssl shards pack",
        "nil": r"nil\.tar holds 0 bytes; .*remove it",
        "hollow": r"no sample was found at the start of \S+hollow\.tar",
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.tar"
        path.write_bytes(content)
        text = refused_start(capsys, recipe, path, tmp_path / "run")
        assert re.search(expected[name], text) and "\n" not in text


def test_shards_of_rejects_only_are_a_table_of_reasons(
    recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """A user must see why nothing was left."""
    members = {f"{n:03d}.jpg": b"no image" for n in range(20)} | {"t/a.txt": b"x"}
    data = write_tar(tmp_path / "bad.tar", members)
    first, *table = refused_start(capsys, recipe, data, tmp_path / "run").splitlines()
    assert first.startswith("every sample")
    assert sorted(line.split() for line in table if line.startswith("  ")) == [
        ["no_image", "1"],
        ["not_an_image", "20"],
    ]


def test_a_batch_that_cannot_be_filled_is_one_sentence(
    recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """With the number that would work."""
    data = make_shards(tmp_path / "data", num=12)
    text = refused_start(capsys, recipe, data, tmp_path / "run")
    assert text == (
        "batch_size=16, but a pass over the data holds only 12 images; give more data, or "
        "--stream.batch-size of at most 12"
    )


class _Refusing(BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown key</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket whose store refuses every request."""
    s3fs = pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://some-bucket/shards/*.tar"
        server.shutdown()
        thread.join()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_bucket_that_refuses_is_one_sentence(
    bucket: str, recipe: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without credentials and with wrong ones; at once, not after minutes of retries."""
    expected = r"access to 's3://some-bucket/\S+' was refused \(.*\); check the credentials"
    assert re.match(expected, refused_start(capsys, recipe, bucket, tmp_path / "run"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-nobody-may-see")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    text = refused_start(capsys, recipe, bucket, tmp_path / "run")
    assert re.match(expected, text) and "secret" not in text


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("foo://bucket/0.tar", "is in the store 'foo', which is unknown; allowed are a local path"),
        ("http://127.0.0.1:9/0.tar", "could not be listed .*check the address and the network"),
        ("{a,b.tar", "the braces of '{a,b.tar' do not match; write"),
    ],
)
def test_an_address_that_cannot_work_is_one_sentence(
    data: str, expected: str, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """Whatever library fails underneath."""
    assert re.search(expected, refused_start(capsys, recipe, data, tmp_path / "run"))


# Folders and machines that cannot be used.


def test_an_out_that_is_taken_is_one_sentence(
    shards_folder: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """A file, a path below a file, somebody else's folder."""
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    text = refused_start(capsys, recipe, shards_folder, file)
    assert "file is a file; --out is the folder of a run" in text
    assert "file is a file" in refused_start(capsys, recipe, shards_folder, file / "run")
    text = refused_start(capsys, recipe, shards_folder, foreign)
    assert "foreign is not empty and not a run" in text and "give a new --out" in text


def test_a_run_that_is_another_one_is_one_sentence(
    shards_folder: Path, finished_run: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """Finished, of another method, on other data, with another setting."""
    text = refused_start(capsys, recipe, shards_folder, finished_run)
    assert "has all its 6 steps; raise --num-steps to train on, or give a new --out" in text
    text = refused_start(
        capsys, recipe, shards_folder, finished_run, "--num-steps", 9, "--optim.base-lr", 3
    )
    assert "started with optim.base_lr=0.1, now it is 3.0; a run goes on with its own" in text
    write_toml(tiny_moco(num_steps=9), tmp_path / "moco.toml")
    text = refused_start(capsys, str(tmp_path / "moco.toml"), shards_folder, finished_run)
    assert "is of method 'swav', this run trains 'moco'; resume with the recipe it was" in text
    other = make_shards(tmp_path / "other", num=64, seed=3)
    text = refused_start(capsys, recipe, other, finished_run, "--num-steps", 9)
    assert "belongs to other data" in text and "resume with the --data it was started" in text


def test_a_port_that_is_taken_is_one_sentence(
    shards_folder: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """Before anything is trained."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused_start(
            capsys, recipe, shards_folder, tmp_path / "run", "--metrics-port", port
        )
    assert f"/metrics cannot be served on port {port} (" in text
    assert "give another --metrics-port, or 0 for any free one" in text


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_one_sentence(
    shards_folder: Path,
    recipe: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray alone would try for many minutes."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
    text = refused_start(capsys, recipe, shards_folder, tmp_path / "run", "--cluster", "auto")
    assert re.match(r"no Ray cluster answers at 'auto' \(.*refused\); give --cluster local", text)


# What the commands print.


def test_a_run_started_from_its_own_config_is_the_same_run(
    shards_folder: Path, finished_run: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The file beside a run is a RECIPE; plain lines tell how it went."""
    out = tmp_path / "again"
    arguments = ["--data", shards_folder, "--out", out, "--readers", 1]
    text = shown(capsys, "pretrain", finished_run / "config.toml", *arguments)
    assert proof(out) == proof(finished_run)
    first, page, metrics, *steps, last = text.splitlines()
    assert first == f"swav on 3 shards, 6 steps, into {out}"
    assert re.fullmatch(r"live page at http://127\.0\.0\.1:\d+/", page)
    assert re.fullmatch(r"metrics at http://127\.0\.0\.1:\d+/metrics", metrics)
    line = r"step \d/6 · loss \d\.\d{4} · [\d,]+ images/s · data wait \d+\.\d% · 0:\d\d left"
    assert steps and all(re.fullmatch(line, step) for step in steps)
    assert re.fullmatch(r"done: 96 images at [\d,]+/s, data wait \d+\.\d%; \S+00006", last)


def test_sizes_that_follow_from_batch_and_data_are_printed_and_kept(
    shards_folder: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """Each with its origin; what is given by hand wins; the same command goes on."""
    out = tmp_path / "run"
    command = ["pretrain", recipe, "--data", shards_folder, "--out", out, "--readers", 1]
    command += ["--sizes", "auto", "--stream.batch-size", 8, "--method.epsilon", 0.04]
    text = shown(capsys, *command, "--num-steps", 2)
    head = "sizes for batches of 8 of about "
    found = [line.strip() for line in text.partition(head)[2].splitlines()[1:7]]
    assert found[0] == "optim.base_lr = 0.0594604 (0.1 at 16, times (8 / 16)^0.75)"
    assert "method.epsilon = 0.04 (by hand)" in found
    saved = read_toml(out / "config.toml")
    assert (saved.sizes, saved.method.num_prototypes, saved.method.epsilon) == ("given", 2, 0.04)
    assert saved.origins["method.num_prototypes"].startswith("one for 100 of ")
    assert "resuming at step 2" in shown(capsys, *command, "--num-steps", 3)
    text = refused(capsys, *command, "--num-steps", 4, "--num-samples", 10_000)
    assert "this run was started with method." in text
    taken = ["--out", tmp_path / "b", "--method.num-prototypes", 5, "--num-steps", 1]
    shown(capsys, "pretrain", out / "config.toml", "--data", shards_folder, *taken)
    origins = read_toml(tmp_path / "b" / "config.toml").origins
    assert "method.num_prototypes" not in origins and "optim.base_lr" in origins


def test_knn_prints_a_table_with_baselines_and_keeps_the_score(
    finished_run: Path, shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """One row an encoder, one column a k; whoever watches the run finds what it scored."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    arguments = ["--run", run, "--train", shards_folder, "--test", shards_folder, "--follow"]
    text = shown(capsys, "evaluate", "knn", *arguments, "--ks", 1, 5, "--baselines")
    assert "at step 6: 160 training and 160 test images" in text
    rows = [re.split(r" *[│┃] *", line) for line in text.splitlines()]
    table = {row[1]: row[2:-1] for row in rows if len(row) == 5}
    assert table["encoder"] == ["k=1", "k=5"]
    assert list(table) == ["encoder", "raw pixels", "untrained", "trained"]
    assert table["raw pixels"][0] == table["trained"][0] == "100.0"
    assert newest_score(run).step == 6 and newest_score(run).headline == 100.0


def test_knn_that_cannot_be_computed_is_one_sentence(
    finished_run: Path, shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A k beyond the data, no labels, a run without a checkpoint, a checkpoint that is damaged."""
    knn = ["evaluate", "knn", "--train", shards_folder, "--test", shards_folder, "--run"]
    text = refused(capsys, *knn, finished_run, "--ks", 161)
    assert text.startswith("k-NN with k=161 on 160 training images") and "smaller k" in text
    assert "holds no checkpoint; give the folder of a run" in refused(capsys, *knn, tmp_path)
    image = next(shards_folder.glob("*.tar")).read_bytes()
    start = image.index(b"\xff\xd8\xff")
    bare = write_tar(tmp_path / "bare.tar", {"000.jpg": image[start : start + 4000]})
    text = refused(capsys, *knn, finished_run, "--test", bare)
    assert "sample '000' of" in text and "has no label (members: jpg)" in text
    broken = tmp_path / "broken"
    shutil.copytree(finished_run, broken)
    (broken / "checkpoints" / "step-00000006" / "state.json").write_text("{")
    assert "holds no readable state.json" in refused(capsys, *knn, broken)


def make_class_folders(folder: Path, shards: Path) -> Path:
    """Six images of shards as files, in two folders, and a file that is no image."""
    with tarfile.open(sorted(shards.glob("*.tar"))[0]) as tar:
        images = [member for member in tar if member.name.endswith(".jpg")][:6]
        for number, member in enumerate(images):
            path = folder / ("cats" if number % 2 else "dogs") / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            file = tar.extractfile(member)
            assert file is not None
            path.write_bytes(file.read())
    (folder / "notes.txt").write_text("x")
    return folder


def test_packing_says_what_it_wrote_and_finds_it_again(
    shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """The second time nothing is written; another input is refused."""
    images, out = make_class_folders(tmp_path / "images", shards_folder), tmp_path / "packed"
    text = shown(capsys, "shards", "pack", images, out, "--samples-per-shard", 4)
    assert re.search(r"6 samples in 2 shards \([\d,]+ bytes\) in \S+packed: written", text)
    assert "skipped 1: not_an_image" in text
    text = shown(capsys, "shards", "pack", images, out, "--samples-per-shard", 4)
    assert "are there already, made from the same files" in text
    (images / "cats" / "1.jpg").unlink()
    text = refused(capsys, "shards", "pack", images, out, "--samples-per-shard", 4)
    assert "packed exists and is not a complete pack of these images" in text


# The same as whole processes.


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamssl.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)


def test_a_process_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    """What a shell script sees."""
    done = process("pretrain", "swav-small", "--data", tmp_path / "*.tar", "--out", tmp_path / "r")
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"streamssl: no shard matches .*\n", done.stderr)
    assert not (tmp_path / "r").exists()


def test_a_process_prints_plain_lines_into_a_pipe(
    shards_folder: Path, recipe: str, tmp_path: Path
) -> None:
    """No escape codes in a log, nothing on stderr, exit code 0."""
    out = tmp_path / "run"
    done = process(
        "pretrain", recipe, "--data", shards_folder, "--out", out, "--num-steps", 2, "--readers", 1
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("swav", "live", "metrics", "step", "step", "done:")
    ]
