"""`streamssl evaluate knn`: the score of a run's encoder."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from streamssl.evaluation.evaluate import Encoder, knn_of_run
from streamssl.evaluation.knn import KnnConfig
from streamssl.parsing import parse


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateKnn:
    """Score the encoder of a run by k-NN: neighbours from --train, accuracy on --test."""

    run: Path
    """A run folder (its newest checkpoint), or one checkpoint."""
    train: str
    """Labelled shards whose pictures are the neighbours."""
    test: str
    """Labelled shards that are scored."""
    ks: tuple[int, ...] = (20, 200)
    """How many neighbours vote; one accuracy for each."""
    temperature: float = 0.1
    """How sharply votes are weighed; smaller is sharper."""
    size: int | None = None
    """Side of the pictures in pixels; None: the run's largest crop."""
    baselines: bool = False
    """Score raw pixels and the untrained encoder too."""


def evaluate_knn(arguments: list[str], console: Console) -> int:
    """Score the encoder of a run by k-NN on labelled shards."""
    parsed = parse(EvaluateKnn, "streamssl evaluate knn", arguments)
    encoders: tuple[Encoder, ...] = ("trained",)
    if parsed.baselines:
        encoders = ("raw pixels", "untrained", "trained")
    config = KnnConfig(ks=parsed.ks, temperature=parsed.temperature)
    scores = knn_of_run(parsed.run, parsed.train, parsed.test, encoders, config, parsed.size)
    console.print(
        f"k-NN accuracy in % at step {scores.step}: {scores.num_train:,} training and "
        f"{scores.num_test:,} test pictures"
    )
    table = Table()
    table.add_column("encoder")
    for k in parsed.ks:
        table.add_column(f"k={k}", justify="right")
    for encoder, accuracy in scores.accuracy.items():
        table.add_row(encoder, *(f"{accuracy[k]:.1f}" for k in parsed.ks))
    console.print(table)
    return 0
