"""Command line: a mistake is one sentence and exit code 2, and it leaves no file behind."""

import gzip
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from streamssl.cli import main
from streamssl.config.run_config import read_toml, write_toml
from streamssl.evaluation.scores import newest_score
from tests.tinyrun import proof, tiny_swav

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The settings of a run of six steps, as a file that is a RECIPE."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    write_toml(tiny_swav(), path)
    return str(path)


def refused(capsys: Capture, *arguments: object) -> str:
    """Return the message of a command that must end with exit code 2."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("streamssl: ") and text.endswith("\n")
    assert "Traceback" not in text
    return text.removeprefix("streamssl: ").rstrip("\n")


def refused_start(capsys: Capture, recipe: str, data: object, out: Path, *more: object) -> str:
    """Return the message of a `pretrain` that must end with exit code 2 and write nothing."""
    text = refused(capsys, "pretrain", recipe, "--data", data, "--out", out, "--readers", 1, *more)
    assert not out.exists()
    return text


def shown(capsys: Capture, *arguments: object) -> str:
    """Return the output of a command that must succeed."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


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
        (
            "pretrain swav --data x --out x --base-lr 3",
            "unknown option --base-lr; did you mean --o",
        ),
        (
            "pretrain swav --data x --out x --precision fp8",
            "--precision='fp8'; allowed are fp32, b",
        ),
        (
            "pretrain swav --data x --out x --optim.base-lr fast",
            "--optim.base-lr='fast'; it must be a number; ",
        ),
        ("pretrain swav --data x --out x --optim.base-lr -1", "base_lr=-1.0; it must not be neg"),
        ("pretrain swav --data x --out x --num-steps 0", "num_steps=0; it must be at least 1"),
        ("pretrain swav --data x --out x --readers 0", "--readers 0: a number from 1 on"),
        ("pretrain swav --data x --out x --cluster k8s", "cluster='k8s'; it must be none, local, "),
        ("pretrain swav --data x --out x --decode auto", "--decode with cluster='none', which is"),
        ("pretrain swav --data x --out x --metrics-port 99999", "metrics_port=99999; it must be"),
        (
            "pretrain swav --data a b --out x --weights 1",
            "1 weights for 2 patterns of --data; each",
        ),
        (
            "pretrain swav --data a --out x --cache c --cache-bytes 0",
            "cache max_bytes=0; it must be",
        ),
        (
            "pretrain swav --data a --out x --num-samples 9",
            "9 with --sizes given; it is the number",
        ),
        ("pretrain swav --data a --out x --subset l.csv", "l.csv'; it must be a .parquet, .txt or"),
        ("evaluate knn --run x", "--train is missing; `streamssl evaluate knn --help` lists"),
        ("shards verify x --threads 0", "threads=0; it must be at least 1"),
        ("shards stats x --sample 0", "sample=0; it must be at least 1 chunk; leave it out"),
        ("shards stats no/such/folder", "no/such/folder"),
        ("shards pack no/such/folder x", "no/such/folder is not a folder"),
        ("demo --num-train 3", "num_train=3 and num_test=1500; the demo needs at least 512"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: str, expected: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user needs what was found, what is allowed and a remedy, on one line."""
    monkeypatch.chdir(tmp_path)
    text = refused(capsys, *arguments.split())
    assert expected in text and "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_each_command_has_help(capsys: Capture) -> None:
    """A pipe finds help on stdout, and help is not a failure."""
    for command in (
        *("", "pretrain", "pretrain swav", "evaluate", "evaluate knn", "shards", "shards pack"),
        *("shards verify", "drill", "drill hang", "drill corrupt", "live", "monitor", "demo"),
    ):
        try:
            code = main([*command.split(), "--help"])
        except SystemExit as left:
            code = left.code or 0
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "") and "usage" in captured.out.lower(), command


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.slow
def test_unusable_data_is_one_sentence(recipe: str, capsys: Capture, tmp_path: Path) -> None:
    """Each kind of wrong data must be named before anything is written."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "zip.tar").write_bytes(gzip.compress(b"x" * 9000))
    (tmp_path / "nil.tar").touch()
    write_tar(tmp_path / "hollow.tar", {})
    write_tar(tmp_path / "bad.tar", {f"{n:03d}.jpg": b"no image" for n in range(20)})
    for data, expected in {
        "*.none": r"no shard matches '.*\*\.none'; give a folder, a glob",
        "nowhere": r"nowhere",
        "empty": r"no image found in",
        "text.tar": r"text\.tar is not a tar: .*streamssl shards pack",
        "zip.tar": r"zip\.tar is not a tar: it begins with a gzip file; .*streamssl shards pack",
        "nil.tar": r"nil\.tar holds 0 bytes in 1 shards; .*write it again",
        "hollow.tar": r"no sample was found at the start of \S+hollow\.tar",
        "bad.tar": r"^every sample(.|\n)*not_an_image +20",
    }.items():
        assert re.search(expected, refused_start(capsys, recipe, tmp_path / data, tmp_path / "run"))
    for address, expected in {
        "foo://bucket/0.tar": r"store 'foo', which is unknown; allowed are a local path",
        "http://127.0.0.1:9/0.tar": r"could not be listed .*check the address and the network",
        "{a,b.tar": r"the braces of '{a,b.tar' do not match; write",
    }.items():
        assert re.search(expected, refused_start(capsys, recipe, address, tmp_path / "run"))


def test_a_taken_port_is_one_sentence(
    shards_folder: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """The port must be tried before the first step."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = refused_start(
            capsys, recipe, shards_folder, tmp_path / "run", "--metrics-port", port
        )
    assert f"/metrics cannot be served on port {port} (" in text
    assert "give another --metrics-port, or 0 for any free one" in text


@pytest.mark.ray
def test_a_missing_cluster_is_one_sentence(
    shards_folder: Path,
    recipe: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray alone would try to connect for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "of a cluster")
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed.getsockname()[1]}")
    text = refused_start(capsys, recipe, shards_folder, tmp_path / "run", "--cluster", "auto")
    assert re.match(r"no Ray cluster answers at 'auto' \(.*refused\); give --cluster local", text)


def test_a_run_started_from_its_own_config_is_the_same_run(
    shards_folder: Path, finished_run: Path, capsys: Capture, tmp_path: Path
) -> None:
    """A pipe gets plain lines: no escape codes, one fact per line."""
    out = tmp_path / "again"
    arguments = ["--data", shards_folder, "--out", out, "--readers", 1]
    text = shown(capsys, "pretrain", finished_run / "config.toml", *arguments)
    assert proof(out) == proof(finished_run)
    start, plan, page, metrics, *steps, last = text.splitlines()
    assert start == f"swav from {shards_folder}"
    assert plan == f"swav on 3 shards, 6 steps from random weights, into {out}"
    assert re.fullmatch(r"live page at http://127\.0\.0\.1:\d+/", page)
    assert re.fullmatch(r"metrics at http://127\.0\.0\.1:\d+/metrics", metrics)
    line = r"step \d/6 · loss \d\.\d{4} · [\d,]+ images/s · data wait \d+\.\d% · 0:\d\d left"
    assert steps and all(re.fullmatch(line, step) for step in steps)
    assert re.fullmatch(r"done: 96 images at [\d,]+/s, data wait \d+\.\d%; \S+00006", last)


def test_derived_sizes_are_printed_and_kept(
    shards_folder: Path, recipe: str, capsys: Capture, tmp_path: Path
) -> None:
    """A resumed run must keep its sizes, and options given by hand must win."""
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
    """The live page and /metrics read the score from the folder of the run."""
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


def test_a_score_below_the_untrained_encoder_is_told(
    finished_run: Path, shards_folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    """It was printed without a word, and was taken for success."""
    run, scores = tmp_path / "run", tmp_path / "run" / "scores.jsonl"
    shutil.copytree(finished_run, run)
    arguments = ["--run", run, "--train", shards_folder, "--test", shards_folder, "--ks", 50]
    text = shown(capsys, "evaluate", "knn", *arguments)
    assert "untrained encoder on these sets is not known" in text and "--baselines" in text
    fields = json.loads(scores.read_text())
    scores.write_text(json.dumps({**fields, "untrained": {"50": 100.0}}) + "\n")
    text = shown(capsys, "evaluate", "knn", *arguments)
    assert re.search(r"scores \d+\.\d % with k=50, below the 100\.0 % of the untrained one", text)
    scores.write_text(json.dumps({**fields, "untrained": {"50": 0.0}}) + "\n")
    assert "untrained" not in shown(capsys, "evaluate", "knn", *arguments)


def test_a_full_disk_met_by_the_output_is_one_sentence() -> None:
    """A traceback, a second one at the end, and the exit status of neither."""
    command = [sys.executable, "-m", "streamssl.cli", "--help"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"streamssl: the disk is full \(.*\); make room there, .*\n", done.stderr)


def test_a_run_that_does_not_exist_has_no_score(tmp_path: Path, capsys: Capture) -> None:
    """A misspelt name would look like success: nothing printed, exit status 0."""
    sets = ["--train", tmp_path, "--test", tmp_path]
    for follow in ([], ["--follow"]):
        text = refused(capsys, "evaluate", "knn", "--run", tmp_path / "no", *sets, *follow)
        assert "no checkpoint; give the folder of a run" in text or "not the folder of a" in text


def test_a_process_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    """A shell script reads the exit code and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "streamssl.cli", "shards", "stats", str(tmp_path / "*.tar")],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"streamssl: no shard matches .*\n", done.stderr)


def test_a_reader_of_the_output_may_leave() -> None:
    """`--help | head -1` must end without a traceback."""
    command = [sys.executable, "-m", "streamssl.cli", "shards", "pack", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=55)) == (b"", 1)
