"""Accuracy of every method on a CPU: `python -m tests.bench.methods --train A --test B`.

The `-small` recipe of each method trains on the shards of `--train` for a budget of CPU minutes,
with all threads and readers included. A short trial gives the cost of a step, and the schedule ends
with the budget. k-NN accuracy on the images of `--test` is printed for raw pixels, the untrained
and the trained encoder. Without shards, images are made by formula.

The same command with the same `--out` resumes a stopped run. `--out` also caches the scores of
untrained encoders.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from rich.console import Console

from shards.pack.image_entries import entries_from_synthetic
from shards.pack.pack import PackConfig, pack
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.evaluation.score_run import Encoder, knn_of_run
from streamssl.pretrain.run import pretrain
from streamssl.recipes import RECIPES
from streamssl.runs.logs.metrics_log import read_log
from streamssl.runs.placement import Placement

_ENDING = "-small"
# Re-identification has a bench of its own, `tests.bench.reid`.
_SMALL = [name for name in RECIPES if name.endswith(_ENDING) and name != "spcl-reid-small"]
METHODS = tuple(name.removesuffix(_ENDING) for name in _SMALL)
# Steps of a trial run that measures the cost of a step; the first ones are a warm-up.
_TRIAL_STEPS, _TRIAL_SKIPPED = 20, 6
_MADE_TRAIN, _MADE_TEST = 6000, 1500


@dataclass(frozen=True, kw_only=True)
class Options:
    """`methods`: all, or some by name. `train`, `test`: labelled shards; None makes images.

    `minutes`: CPU minutes per method. `out` keeps runs and images; None deletes them.
    """

    methods: tuple[str, ...] = METHODS
    minutes: float = 5.0
    train: str | None = None
    test: str | None = None
    out: Path | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = 1
    json: bool = False


# In percent, by encoder and k.
Accuracy = dict[Encoder, dict[int, float]]


@dataclass(frozen=True)
class Row:
    """Result of a method."""

    method: str
    steps: int
    images: int
    cpu_minutes: float
    wall_minutes: float
    accuracy: Accuracy

    @property
    def learns(self) -> bool:
        return self.accuracy["trained"][20] > self.accuracy["untrained"][20]

    def line(self) -> str:
        scores = (
            f"{self.accuracy[encoder][k]:.1f}"
            for encoder in ("raw pixels", "untrained", "trained")
            for k in (20, 200)
        )
        cells = (f"{self.steps}", f"{self.images:,}", f"{self.cpu_minutes:.1f}")
        return f"| {self.method} | {' | '.join([*cells, *scores])} |"


def shards_of(options: Options, out: Path) -> tuple[str, str]:
    """Return labelled shards for training and scoring; make them if none are given."""
    if options.train is not None and options.test is not None:
        return options.train, options.test
    for name, num, seed in (("train", _MADE_TRAIN, 1), ("test", _MADE_TEST, 2)):
        pack(entries_from_synthetic(num, seed=seed), out / name, PackConfig(samples_per_shard=1000))
    return str(out / "train"), str(out / "test")


def fitted(config: RunConfig, train: str, minutes: float) -> RunConfig:
    """Return the recipe with as many steps as the budget allows, at most its own."""
    marks: list[float] = []

    def mark() -> bool:
        marks.append(time.process_time())
        return False

    with tempfile.TemporaryDirectory() as folder:
        trial = replace(config, num_steps=_TRIAL_STEPS + config.schedule.warmup_steps)
        stop_after = iter(range(_TRIAL_STEPS - 1))
        pretrain(
            trial,
            train,
            Path(folder) / "trial",
            Placement(readers=1),
            Console(quiet=True),
            lambda: mark() or next(stop_after, None) is None,
        )
    seconds = (marks[-1] - marks[_TRIAL_SKIPPED]) / (len(marks) - 1 - _TRIAL_SKIPPED)
    num_steps = min(config.num_steps, int(60 * minutes / seconds))
    return replace(config, num_steps=num_steps, save_every=max(1, num_steps // 10), keep=1)


def measure(method: str, options: Options, train: str, test: str, out: Path) -> Row:
    """Train a method, or resume it, and score its encoder."""
    run = out / method
    if (run / "config.toml").exists():
        config = read_toml(run / "config.toml")
    else:
        recipe = replace(RECIPES[method + _ENDING](), precision=options.precision)
        config = fitted(recipe, train, options.minutes)
    spent = run.with_suffix(".cpu.json")
    before = json.loads(spent.read_text()) if spent.exists() else 0.0
    if not (run / "checkpoints" / f"step-{config.num_steps:08d}").exists():
        began = time.process_time()

        def note() -> bool:
            spent.write_text(json.dumps(before + time.process_time() - began))
            return False

        pretrain(config, train, run, Placement(readers=1), Console(stderr=True), note)
    log = read_log(run).values()
    seconds = sum(fields["step_seconds"] + fields["data_wait_seconds"] for fields in log)
    return Row(
        method,
        config.num_steps,
        sum(fields["num_samples"] for fields in log),
        json.loads(spent.read_text()) / 60,
        seconds / 60,
        score(run, config, train, test),
    )


def score(run: Path, config: RunConfig, train: str, test: str) -> Accuracy:
    """Return the k-NN accuracy of all encoders; scores of untrained ones are cached."""
    known_at = run.parent / "untrained.json"
    known = json.loads(known_at.read_text()) if known_at.exists() else {}
    key = f"{config.backbone} {config.seed} {config.largest_crop} {train} {test}"
    if key not in known:
        known[key] = knn_of_run(run, train, test, ("raw pixels", "untrained")).accuracy
        known_at.write_text(json.dumps(known))
    before = {name: {int(k): v for k, v in by_k.items()} for name, by_k in known[key].items()}
    return before | knn_of_run(run, train, test).accuracy


def main(options: Options) -> None:
    """Measure, and print one table row per method."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        train, test = shards_of(options, out)
        rows = []
        for method in options.methods:
            row = measure(method, options, train, test, out)
            rows.append(row)
            note = "" if row.learns else "  <- does not learn"
            print(json.dumps(asdict(row)) if options.json else row.line() + note, flush=True)
        if not all(row.learns for row in rows):
            raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Options))
