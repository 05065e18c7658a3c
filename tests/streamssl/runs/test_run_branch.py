"""A run that diverged goes on as its message says; a run never loses what it had."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from shards.errors import ConfigError
from shards.stores.range_reader import RangeReader
from streamssl import checkpoint
from streamssl.cli import main
from streamssl.config.run_config import RunConfig, read_toml, write_toml
from streamssl.errors import TrainingDiverged
from streamssl.pretrain.replay_batch import open_batch
from tests.tinyrun import proof, read_log, stop_at, tiny_swav, train_here, weights


def at_rate(config: RunConfig, base_lr: float) -> RunConfig:
    return replace(config, optim=replace(config.optim, base_lr=base_lr))


@contextmanager
def updates_overflow_above(rate: float) -> Iterator[None]:
    """Let every update at a higher learning rate overflow, as that of a run which diverges."""

    def overflow(optimizer: Any, *_: object) -> None:
        if optimizer.param_groups[0]["lr"] > rate:
            optimizer.param_groups[0]["params"][0].data.mul_(torch.inf)

    handle = register_optimizer_step_post_hook(overflow)
    try:
        yield
    finally:
        handle.remove()


def test_the_printed_command_goes_on_from_the_checkpoint_that_it_names(
    shards_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The remedy was refused by the next start, and the same start ended there for ever."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    write_toml(tiny_swav(save_every=1, keep=1), recipe)
    words = ["pretrain", str(recipe), "--data", str(shards_folder), "--out", str(out)]
    with updates_overflow_above(0.09):  # from the second step on, and never at half the rate
        assert main(words) == 1
        first = capsys.readouterr().err
        assert re.search(r"^streamssl: .*not finite after step 2.*step-00000001 is finite", first)
        assert main(words) == 1
        assert "ended at step 2" in capsys.readouterr().out
        assert main(words) == 2
        refused = capsys.readouterr().err
        assert "2 starts from step-00000001 with these settings ended at step 2" in refused
        added = [
            re.search(r"add (--from .*?) to the same command", text) for text in (first, refused)
        ]
        assert "--max-skipped-steps" not in first + refused  # no budget mends such weights
        assert added[0] is not None and added[1] is not None and added[0][1] == added[1][1]
        command = [*words, *shlex.split(added[0][1])]
        assert main(command) == 0, capsys.readouterr().err
    assert [fields["step"] for fields in read_log(out)] == list(range(1, 7))
    assert read_toml(out / "config.toml").optim.base_lr == 0.05
    assert [path.name for path in checkpoint.list_checkpoints(out)] == ["step-00000006"]
    for path in out.rglob("state.safetensors"):
        assert checkpoint.find_not_finite(load_file(path)) is None


def test_a_run_without_a_checkpoint_starts_again_as_its_message_says(
    shards_folder: Path, tmp_path: Path
) -> None:
    """The folder of the first start must not refuse the second."""
    with updates_overflow_above(0.09):
        with pytest.raises(TrainingDiverged, match=r"nothing was saved .* --optim\.base-lr 0\.05"):
            train_here(tiny_swav(save_every=6), shards_folder, tmp_path / "run")
        assert not list(tmp_path.rglob("state.safetensors"))
        config = at_rate(tiny_swav(save_every=6), 0.05)
        assert train_here(config, shards_folder, tmp_path / "run").finished


@pytest.mark.slow
def test_what_was_trained_after_the_checkpoint_is_kept_apart(
    shards_folder: Path, tmp_path: Path
) -> None:
    """Checkpoints of two settings in a row would be one wrong run; deleted ones may be missed."""
    out, config = tmp_path / "run", tiny_swav()
    train_here(config, shards_folder, out)
    before = proof(out)
    (out / "scores.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in (2, 6)))
    slower = at_rate(config, 0.05)
    started = {"start": "step-00000002", "stop": stop_at(out, 4)}
    train_here(slower, shards_folder, out, **started)
    apart = out / "abandoned-1"
    assert sorted(path.name for path in apart.iterdir()) == [
        *("metrics.jsonl", "scores.jsonl", "step-00000004", "step-00000006")
    ]
    assert proof(apart) == before[2:]
    assert (out / "scores.jsonl").read_text() == '{"step": 2}\n'
    (branch,) = map(json.loads, (out / "branches.jsonl").read_text().splitlines())
    assert branch["changed"] == {"optim.base_lr": [0.1, 0.05]} and branch["step"] == 2
    # The same command goes on, and so does the plain one.
    train_here(slower, shards_folder, out, start="step-00000002", stop=stop_at(out, 5))
    assert checkpoint.list_checkpoints(out)[-1].name == "step-00000005"
    train_here(slower, shards_folder, out)
    unbroken = tmp_path / "unbroken"
    train_here(config, shards_folder, unbroken, stop=stop_at(unbroken, 2))
    train_here(slower, shards_folder, unbroken, start=str(unbroken / "checkpoints/step-00000002"))
    assert proof(out) == proof(unbroken) and weights(out, 6) == weights(unbroken, 6)
    assert [(step, digest) for step, digest, _ in proof(out)] == [
        (step, digest) for step, digest, _ in before
    ]


@pytest.mark.slow
def test_the_same_command_goes_on_after_the_named_checkpoint_was_removed(
    shards_folder: Path, tmp_path: Path
) -> None:
    """A scheduler gives the same command again, and `--keep` removes what it names."""
    out, config = tmp_path / "run", tiny_swav(save_every=1, keep=1)
    train_here(config, shards_folder, out, stop=stop_at(out, 1))
    slower = at_rate(config, 0.05)
    started = out / "checkpoints" / "step-00000001"
    train_here(slower, shards_folder, out, start=started.name, stop=stop_at(out, 3))
    assert not started.exists()
    with pytest.raises(ConfigError, match=r"is no checkpoint of .*; there are step-00000003: n"):
        train_here(at_rate(config, 0.02), shards_folder, out, start=started.name)
    train_here(slower, shards_folder, out, start=started.name, stop=stop_at(out, 4))
    assert train_here(slower, shards_folder, out, start=str(started)).step == 6
    assert [fields["step"] for fields in read_log(out)] == list(range(1, 7))
    assert not list(out.glob("abandoned-*"))


def test_only_settings_that_fit_the_checkpoint_may_change(
    shards_folder: Path, finished_run: Path, tmp_path: Path
) -> None:
    """A refusal names --from where it helps, and says which checkpoints there are."""
    longer = tiny_swav(num_steps=9)
    start = "step-00000004"
    for config, named, expected in (
        (at_rate(longer, 0.05), None, "undo the change, add --from step-00000006 to change it"),
        (replace(longer, seed=3), None, "seed=0, now it is 3.*: undo the change, or give a new"),
        (replace(longer, seed=3), start, "seed=0, now it is 3"),
        (longer, "step-00000005", "no checkpoint of .*; there are step-00000002, step-00000004, "),
        (longer, str(tmp_path), "is no checkpoint of"),
    ):
        with pytest.raises(ConfigError, match=expected):
            train_here(config, shards_folder, finished_run, start=named)
    with pytest.raises(ConfigError, match="has no checkpoint yet; leave --from out"):
        train_here(longer, shards_folder, tmp_path / "new", start=start)
    assert not list(finished_run.glob("abandoned-*")) and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_names_the_one_before_it(
    shards_folder: Path, tmp_path: Path
) -> None:
    """Older versions wrote such checkpoints; a run from them never learns again."""
    out = tmp_path / "run"
    train_here(tiny_swav(), shards_folder, out)
    for name in ("step-00000004", "step-00000006"):
        path = out / "checkpoints" / name / "state.safetensors"
        tensors = load_file(path)
        tensors["method.head.0.weight"][0] = torch.nan
        save_file(tensors, path)
    longer = tiny_swav(num_steps=7)
    with pytest.raises(ConfigError, match=r"step-00000006 has numbers .* --from step-00000002 "):
        train_here(longer, shards_folder, out)
    assert train_here(longer, shards_folder, out, start="step-00000002").finished


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_as_its_refusal_says(
    shards_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its next steps would silently get other crops than its first ones."""
    out, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    write_toml(tiny_swav(num_steps=2, save_every=2), recipe)
    words = ["pretrain", str(recipe), "--data", str(shards_folder), "--out", str(out)]
    assert main(words) == 0
    settings = (out / "config.toml").read_text()
    old = settings.replace("crop_definition = 2\n", "").replace('"native"', '"opencv"')
    assert len(old) == len(settings) - len("crop_definition = 2\n")
    (out / "config.toml").write_text(old)
    more = [*words, "--num-steps", "4"]
    capsys.readouterr()
    assert main(more) == 2
    refused = capsys.readouterr().err
    found = re.search(r"crops of definition 1.* of definition 2.*; add (--from \S+) to", refused)
    assert found is not None, refused
    assert main([*more, *shlex.split(found[1])]) == 0, capsys.readouterr().err
    assert [fields["step"] for fields in read_log(out)] == [1, 2, 3, 4]
    assert open_batch(out, 3, RangeReader()).digest == read_log(out)[2]["digest"]
    with pytest.raises(ConfigError, match="definition 1"):
        open_batch(out, 2, RangeReader())
