"""`streamssl evaluate`: score the encoder of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from shards.errors import UserError
from shards.redaction import redact
from streamssl.commands.argument_parser import parse
from streamssl.evaluation.set_options import SetCounts, SetOptions, describe_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateKnn:
    """Score the encoder of a run by k-NN: neighbours from --train, accuracy on --test."""

    run: Path
    """A run folder (its newest checkpoint), or one checkpoint."""
    train: str
    """Labelled shards whose images are the neighbours."""
    test: str
    """Labelled shards that are scored."""
    ks: tuple[int, ...] = (20, 200)
    """Numbers of neighbours that vote; one accuracy for each."""
    temperature: float = 0.1
    """Temperature of the vote weights; smaller is sharper."""
    sets: Annotated[SetOptions, tyro.conf.arg(name="")] = field(default_factory=SetOptions)
    baselines: bool = False
    """Score raw pixels and the untrained encoder too."""
    follow: bool = False
    """Score every newer checkpoint as it comes, until the run's last step or Ctrl-C."""


def evaluate_knn(arguments: list[str], console: Console) -> int:
    """Run `streamssl evaluate knn` and return its exit code."""
    parsed = parse(EvaluateKnn, "streamssl evaluate knn", arguments)
    from streamssl.evaluation.score_run import iter_checkpoints

    baselines = parsed.baselines
    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:  # --follow scores the same sets again and again
            told.add(line)
            console.print(line, markup=False)

    for run in iter_checkpoints(parsed.run) if parsed.follow else (parsed.run,):
        try:
            _score(parsed, run, baselines, console, tell)
        except UserError:
            if not parsed.follow or run.exists():
                raise
            continue  # --keep of the run removed it: a newer checkpoint exists
        baselines = False  # their scores do not change
    return 0


def _score(
    parsed: EvaluateKnn,
    run: Path,
    baselines: bool,
    console: Console,
    tell: Callable[[str], None],
) -> None:
    """Score one checkpoint, print the scores and keep them in the folder of its run."""
    from streamssl.evaluation.knn import KnnConfig
    from streamssl.evaluation.score_run import find_checkpoint, knn_of_run
    from streamssl.evaluation.scores import SCORES, find_untrained, keep_score

    config = KnnConfig(ks=parsed.ks, temperature=parsed.temperature)
    encoders = _encoders(baselines)
    scores = knn_of_run(run, parsed.train, parsed.test, encoders, config, parsed.sets, tell)
    folder, _ = find_checkpoint(run)
    sets = _name_sets(parsed)
    known = {} if folder is None else find_untrained(folder, sets)
    score = scores.score(sets, {k: known[k] for k in parsed.ks if k in known})
    if folder is None:
        console.print(f"{run} is a checkpoint without its run; the score is not saved")
    else:
        try:
            keep_score(folder, score)
        except OSError as error:
            console.print(f"{folder / SCORES} could not be written ({error}); the score is below")
    console.print(
        f"k-NN accuracy in % at step {scores.step}: {scores.train.num_images:,} training and "
        f"{scores.test.num_images:,} test images"
    )
    _print_left_out({"training": scores.train, "test": scores.test}, console)
    table = Table()
    table.add_column("encoder")
    for k in parsed.ks:
        table.add_column(f"k={k}", justify="right")
    for encoder, accuracy in scores.accuracy.items():
        table.add_row(encoder, *(f"{accuracy[k]:.1f}" for k in parsed.ks))
    console.print(table)
    if score.below_untrained:
        console.print(score.below_untrained, markup=False)
    elif not score.untrained:
        tell(
            "the score of the untrained encoder on these sets is not known, and may be higher: "
            "--baselines scores it once"
        )


def _name_sets(parsed: EvaluateKnn) -> str:
    """Return a digest of all that an accuracy depends on, besides the encoder and k."""
    parts = [redact(parsed.train), redact(parsed.test), parsed.temperature, parsed.sets]
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateRetrieval:
    """Score the encoder of a run by retrieval: each image of --query ranks those of --gallery,
    where images with its label are right, such as the same vehicle seen by another camera."""

    run: Path
    """A run folder (its newest checkpoint), or one checkpoint."""
    query: str
    """Labelled shards whose images look for others."""
    gallery: str
    """Labelled shards that are ranked."""
    ranks: tuple[int, ...] = (1, 5, 10)
    """Numbers of first images among which a match counts; one share of queries for each."""
    sets: Annotated[SetOptions, tyro.conf.arg(name="")] = field(default_factory=SetOptions)
    baselines: bool = False
    """Score raw pixels and the untrained encoder too."""


def evaluate_retrieval(arguments: list[str], console: Console) -> int:
    """Run `streamssl evaluate retrieval` and return its exit code."""
    parsed = parse(EvaluateRetrieval, "streamssl evaluate retrieval", arguments)
    from streamssl.evaluation.score_run import retrieval_of_run

    scores = retrieval_of_run(
        parsed.run,
        parsed.query,
        parsed.gallery,
        _encoders(parsed.baselines),
        parsed.ranks,
        parsed.sets,
        lambda line: console.print(line, markup=False),
    )
    counts = next(iter(scores.by_encoder.values()))
    unmatched = (
        f" ({counts.num_unmatched:,} without a match left out)" if counts.num_unmatched else ""
    )
    console.print(
        f"retrieval in % at step {scores.step}: {counts.num_queries:,} queries{unmatched}, "
        f"{scores.gallery.num_images:,} images in the gallery"
    )
    _print_left_out({"query": scores.query, "gallery": scores.gallery}, console)
    table = Table()
    table.add_column("encoder")
    for column in ("mAP", *(f"rank-{k}" for k in parsed.ranks)):
        table.add_column(column, justify="right")
    for encoder, found in scores.by_encoder.items():
        numbers = (found.mean_average_precision, *found.rank.values())
        table.add_row(encoder, *(f"{number:.1f}" for number in numbers))
    console.print(table)
    before, now = scores.by_encoder.get("untrained"), scores.by_encoder["trained"]
    if before is not None and now.mean_average_precision < before.mean_average_precision:
        console.print(
            "the trained encoder scores below the untrained one: the run has made its features "
            "worse for these labels; docs/is-it-learning.md names causes"
        )
    return 0


def _print_left_out(counts: Mapping[str, SetCounts], console: Console) -> None:
    for which, count in counts.items():
        if text := count.describe(which):
            console.print(text, markup=False)
    if text := describe_numbers(counts):
        console.print(text, markup=False)


def _encoders(baselines: bool) -> Any:
    return ("raw pixels", "untrained", "trained") if baselines else ("trained",)
