"""Data of a run: mixtures with changing weights, subset lists, reports of irregular shards."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shards.errors import ConfigError, CursorMismatch
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from streamssl.pretrain.run import pretrain
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, read_data, read_verified, write_data
from tests.tinyrun import make_shards, proof, read_log, tiny_swav


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two folders of shards. Read only."""
    folder = tmp_path_factory.mktemp("two")
    return tuple(str(make_shards(folder / name, num=60, per_shard=30)) for name in "ab")  # type: ignore[return-value]


def run(data: DataConfig, out: Path, num_steps: int = 4, stop_at: int | None = None) -> str:
    """Train, and return the printed lines."""
    text = io.StringIO()
    stops = iter(range(1, 1000))
    pretrain(
        tiny_swav(num_steps=num_steps, save_every=1),
        data,
        out,
        Placement(readers=1),
        Console(file=text, soft_wrap=True),
        lambda: next(stops) == stop_at,
    )
    return text.getvalue()


def journal(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]


def test_a_resumed_run_may_change_its_weights(folders: tuple[str, str], tmp_path: Path) -> None:
    """A change is printed and journaled once, and holds from the next block on."""
    mixed = DataConfig(patterns=folders, weights=("0.7", "0.3"))
    even = replace(mixed, weights=("1", "1"))
    said = run(mixed, tmp_path / "run", stop_at=2)
    assert "from block 0 on sources are mixed 0.7 : 0.3 by chunks, about 0.7 : 0.3 by sam" in said
    said = run(even, tmp_path / "run", stop_at=1)
    block = int(read_log(tmp_path / "run")[1]["cursor"][0]) + 1
    assert f"from block {block} on sources are mixed 0.5 : 0.5" in said
    assert "are mixed" not in run(even, tmp_path / "run")
    assert journal(tmp_path / "run") == [
        {"kind": "weights", "block": 0, "weights": "7/10 3/10"},
        {"kind": "weights", "block": block, "weights": "1/2 1/2"},
    ]
    run(mixed, tmp_path / "unbroken")
    ours, theirs = proof(tmp_path / "run"), proof(tmp_path / "unbroken")
    assert len(ours) == 4 and ours[:2] == theirs[:2]


def test_other_patterns_are_other_data(folders: tuple[str, str], tmp_path: Path) -> None:
    """Weights may change, sources may not; without weights all shards are one source."""
    mixed = DataConfig(patterns=folders, weights=("2", "1"))
    run(mixed, tmp_path / "run", stop_at=1)
    for other in (replace(mixed, patterns=folders[::-1]), replace(mixed, weights=())):
        with pytest.raises(CursorMismatch, match="belongs to other data"):
            run(other, tmp_path / "run")


def test_a_subset_list_is_part_of_the_order(folders: tuple[str, str], tmp_path: Path) -> None:
    """Another list gives another order; unselected samples are counted, not rejected."""
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(f"{number:08d}-synthetic" for number in range(40)))
    data = DataConfig(patterns=folders[:1], subset=str(keys))
    said = run(data, tmp_path / "run")
    assert "only the samples of a list: 40 keys" in said
    log = read_log(tmp_path / "run")
    assert sum(fields["num_unselected"] for fields in log) > 0
    assert sum(fields["num_rejects"] for fields in log) == 0
    state = json.loads(next((tmp_path / "run").glob("checkpoints/*4/state.json")).read_text())
    unselected = sum(fields["num_unselected"] for fields in log)
    assert state["cursor"]["num_unselected"] == unselected
    with pytest.raises(CursorMismatch, match=r"another order .* --subset as they were"):
        run(replace(data, subset=None), tmp_path / "run", num_steps=6)


def test_a_list_that_selects_nothing_is_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    """A stream without a sample would read for ever."""
    (tmp_path / "keys.txt").write_text("nobody\nhere\n")
    with pytest.raises(ConfigError, match=r"selects none of the 60 samples; .*or leave --subset"):
        run(DataConfig(patterns=folders[:1], subset=str(tmp_path / "keys.txt")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def report(folder: str, irregular: list[str], path: Path) -> Path:
    manifest = open_manifest(folder, RangeReader())
    path.write_text(json.dumps({"manifest": manifest.digest, "irregular": irregular}))
    return path


@pytest.mark.slow
def test_irregular_shards_of_a_report_are_read_from_byte_0(
    folders: tuple[str, str], tmp_path: Path
) -> None:
    """With a report a run need not detect irregular shards itself."""
    uris = [shard.uri for shard in open_manifest(folders[1], RangeReader()).shards]
    path = report(folders[1], uris[1:], tmp_path / "report.json")
    data = DataConfig(patterns=folders, weights=("1", "1"), verified=(path,))
    said = run(data, tmp_path / "run", stop_at=1)
    assert "from block 0 on 1 irregular shards are read from byte 0" in said
    assert {"kind": "irregular", "block": 0, "shard": 3} in journal(tmp_path / "run")
    assert "read from byte 0" not in run(data, tmp_path / "run")
    run(replace(data, verified=()), tmp_path / "plain")
    assert proof(tmp_path / "run") == proof(
        tmp_path / "plain"
    )  # the shards are regular, so the samples stay the same


def test_reports_of_other_shards_are_refused(folders: tuple[str, str], tmp_path: Path) -> None:
    """The same row of other data is another shard."""
    manifest = open_manifest(folders[0], RangeReader())
    with pytest.raises(ConfigError, match=r"describes other shards .*; verify those of --data, or"):
        read_verified(report(folders[1], [], tmp_path / "r.json"), manifest)
    (tmp_path / "r.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"r\.json is not a report .*; write one with `streamssl"):
        read_verified(tmp_path / "r.json", manifest)
    both = open_manifest(folders, RangeReader(), separate=True)
    uris = [shard.uri for shard in both.shards]
    path = tmp_path / "both.json"
    path.write_text(json.dumps({"manifest": both.digest, "irregular": uris[:3]}))
    assert read_verified(path, both) == {0, 1, 2}


def test_data_is_saved_without_secrets(tmp_path: Path) -> None:
    """A reader of the run folder must not get access to the bucket."""
    data = DataConfig(
        patterns=("https://u:pw@h/{0..9}.tar?sig=SECRET", "s3://b/*.tar"),
        weights=("0.5", "1/3"),
        subset="list.parquet::id",
    )
    write_data(data, tmp_path / "data.toml")
    text = (tmp_path / "data.toml").read_text()
    assert "SECRET" not in text and "pw" not in text
    saved = read_data(tmp_path / "data.toml")
    assert saved.patterns == ("https://h/{0..9}.tar", "s3://b/*.tar")
    assert saved.weights == data.weights and saved.subset == f"{Path.cwd()}/list.parquet::id"
    wrong = ("subset = true", "weights = 3", "keys = 3", "keys = 'x'", "subset = []")
    types = [f'data = ["x"]\n{line}' for line in wrong]
    for text in ("data = 3 4", "data = 3", "data = [3]", "x = 1", f"x = {'[' * 9999}", *types):
        (tmp_path / "data.toml").write_text(text)
        with pytest.raises(ConfigError, match=r"data\.toml cannot be read .*; a run of this vers"):
            read_data(tmp_path / "data.toml")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patterns": ()}, "no shards are named; a run needs at least one: give --data PATTERN"),
        ({"weights": ("1", "2", "3")}, "3 weights for 2 patterns of --data; each needs one"),
        ({"patterns": ("a",), "weights": ("1",)}, "one weight for one pattern .*: name another"),
        ({"weights": ("1", "x")}, "weight 'x' is not a number"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, object], message: str) -> None:
    """The message must come before anything is listed."""
    with pytest.raises(ConfigError, match=message):
        DataConfig(**{"patterns": ("a", "b"), **fields})  # type: ignore[arg-type]
