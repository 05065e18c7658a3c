"""Demo of the whole path on synthetic images: minutes on the CPU of a laptop."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shards.errors import ConfigError

_TRAIN_SEED, _TEST_SEED = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Synthetic images -> shards -> Ray readers -> SwAV -> k-NN accuracy."""

    out: Path = Path("runs/demo")
    """The folder of all files of the demo; it may be deleted afterwards."""
    num_train: int = 6000
    """Images to train on."""
    num_test: int = 1500
    """Images to score."""
    steps: int | None = None
    """Training steps; None: as many as in the recipe."""
    readers: int = 2
    """Number of readers, each on one core."""
    cluster: str = "local"
    """none: threads of this process; local: a Ray started here; auto or ray://HOST:10001: a running
    Ray."""

    def __post_init__(self) -> None:
        if self.num_train < 512 or self.num_test < 100:
            raise ConfigError(
                f"num_train={self.num_train} and num_test={self.num_test}; the demo needs at "
                "least 512 and 100 images: raise --num-train and --num-test"
            )


def demo(config: DemoConfig, console: Console, stop: Callable[[], bool]) -> bool:
    """Run the demo and print its table; return False if it was stopped: it can be resumed."""
    # Imported here, so that `demo --help` needs no torch.
    from streamssl.evaluation.knn import KnnConfig
    from streamssl.evaluation.score_run import knn_of_run
    from streamssl.evaluation.scores import keep_score
    from streamssl.pretrain.run import pretrain
    from streamssl.recipes.swav_recipes import swav_demo
    from streamssl.runs.placement import Placement

    began = time.monotonic()
    recipe = swav_demo()
    if config.steps is not None:
        recipe = replace(recipe, num_steps=config.steps)
    train, test = _make_shards(config, console)
    run = config.out / "swav"
    if (run / "checkpoints" / f"step-{recipe.num_steps:08d}").exists():
        shutil.rmtree(run)  # a finished demo starts again
    placement = Placement(cluster=config.cluster, readers=config.readers)
    summary = pretrain(recipe, str(train), run, placement, console, stop)
    if not summary.finished:
        console.print(f"stopped at step {summary.step}; `streamssl demo` continues from there")
        return False
    scores = knn_of_run(
        run, str(train), str(test), ("raw pixels", "untrained", "trained"), KnnConfig()
    )
    keep_score(run, scores.score())
    console.print(f"k-NN accuracy on {scores.test.num_images:,} images that were not trained on:")
    table = Table()
    for column in ("encoder", "k=20", "k=200"):
        table.add_column(column, justify="left" if column == "encoder" else "right")
    for encoder, accuracy in scores.accuracy.items():
        table.add_row(encoder, *(f"{accuracy[k]:.1f} %" for k in (20, 200)))
    console.print(table)
    console.print(
        f"{summary.num_samples:,} images trained on, {summary.images_per_second:,.0f} "
        f"images/s, data wait {summary.data_wait_share:.1%}, metrics at "
        f"{summary.metrics_url}, {time.monotonic() - began:.0f} s in all"
    )
    _print_next(config, console)
    return True


def _make_shards(config: DemoConfig, console: Console) -> tuple[Path, Path]:
    """Return the folders of the shards to train on and to score."""
    from shards.pack.image_entries import entries_from_synthetic
    from shards.pack.pack import PackConfig, pack

    train, test = config.out / "train", config.out / "test"
    for folder, num, seed in (
        (train, config.num_train, _TRAIN_SEED),
        (test, config.num_test, _TEST_SEED),
    ):
        began = time.monotonic()
        source = entries_from_synthetic(num, seed=seed)
        report = pack(source, folder, PackConfig(samples_per_shard=1000))
        done = "found" if report.reused else "drawn and packed"
        console.print(
            f"{report.num_samples:,} images of {len(source.class_names)} classes {done}: "
            f"{report.num_shards} shards in {folder} ({time.monotonic() - began:.1f} s)"
        )
    return train, test


def _print_next(config: DemoConfig, console: Console) -> None:
    console.print(
        "\nYour own images (a folder is packed into shards first):\n"
        "  streamssl pretrain swav --data ~/Pictures --out runs/mine\n"
        "Your own bucket of tars:\n"
        "  streamssl pretrain swav --data 's3://bucket/shards/{00000..00099}.tar' "
        "--out runs/bucket --cluster local\n"
        "Open the live page of a run that ended:\n"
        f"  streamssl live {config.out / 'swav'}\n"
        "Score any run on labelled shards (--follow: every checkpoint while it trains):\n"
        f"  streamssl evaluate knn --run {config.out / 'swav'} --train {config.out / 'train'} "
        f"--test {config.out / 'test'} --baselines",
        soft_wrap=True,
    )
