"""Scores of the encoder of a run on labelled shards."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from shards.errors import ConfigError
from shards.inspect.labelled_images import LabelledSet
from shards.inspect.layout_report import probe_layout
from shards.redaction import redact
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from streamssl import checkpoint
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.evaluation.knn import KnnConfig, knn_accuracy
from streamssl.evaluation.labelled_sets import (
    EmbeddedSet,
    check_known,
    embed_set,
    number_classes,
)
from streamssl.evaluation.retrieval import RetrievalScore, retrieve
from streamssl.evaluation.scores import KnnScore
from streamssl.evaluation.set_options import SetCounts, SetOptions
from streamssl.modules.backbones import build_backbone

Encoder = Literal["raw pixels", "untrained", "trained"]
_POLL_SECONDS = 1.0
_Both = tuple[EmbeddedSet, EmbeddedSet]
Tell = Callable[[str], None]


def _tell_nobody(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class KnnResult:
    """Top-1 accuracy in percent by encoder and k, and the counts of both sets."""

    accuracy: dict[Encoder, dict[int, float]]
    train: SetCounts
    test: SetCounts
    step: int

    def score(self, sets: str = "", untrained: Mapping[int, float] | None = None) -> KnnScore:
        """Return the score of the trained encoder, in the form that is saved.

        `untrained` is that of the untrained one, if it is known and was not scored again.
        """
        return KnnScore(
            self.step,
            self.accuracy["trained"],
            self.train.num_images,
            self.test.num_images,
            self.test.num_left_out,
            sets,
            self.accuracy.get("untrained", untrained or {}),
        )


def knn_of_run(
    run: Path,
    train: str,
    test: str,
    encoders: tuple[Encoder, ...] = ("trained",),
    config: KnnConfig | None = None,
    options: SetOptions | None = None,
    tell: Tell = _tell_nobody,
) -> KnnResult:
    """Return the k-NN accuracy on the shards `test`, with neighbours from the shards `train`.

    `run` is a run folder (its newest checkpoint) or one checkpoint of it. `tell` receives what is
    unusual in the sets, a line each. Raises UserError.
    """
    accuracy: dict[Encoder, dict[int, float]] = {}
    counts = SetCounts(0), SetCounts(0)
    sets = {"training": train, "test": test}
    step, found = _features_of_run(run, sets, encoders, options or SetOptions(), tell)
    for encoder, (first, second) in found:
        check_known(first, second)
        train_y, test_y = number_classes(first, second)
        accuracy[encoder] = knn_accuracy(first.features, train_y, second.features, test_y, config)
        counts = first.counts, second.counts
    return KnnResult(accuracy, *counts, step)


def iter_checkpoints(run: Path) -> Iterator[Path]:
    """Yield the newest checkpoint of a run, then each newer one, up to that of the last step.

    A checkpoint that is no longer the newest when the caller asks for the next one is skipped. A
    run that stopped before its last step is waited for: it may be resumed. Raises ConfigError.
    """
    if not (run / "config.toml").exists():
        raise ConfigError(
            f"{run} is not the folder of a run (it has no config.toml), and only a run can be "
            "followed: name the --out of `streamssl pretrain` once it trains, or leave --follow out"
        )
    num_steps = read_toml(run / "config.toml").num_steps
    seen = -1
    while seen < num_steps:
        for newest in checkpoint.list_checkpoints(run)[-1:]:
            step = int(checkpoint.read_fields(newest)["step"])
            if step > seen:
                yield newest
                seen = step
                break
        else:
            time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Retrieval scores by encoder, and the counts of both sets."""

    by_encoder: dict[Encoder, RetrievalScore]
    query: SetCounts
    gallery: SetCounts
    step: int


def retrieval_of_run(
    run: Path,
    query: str,
    gallery: str,
    encoders: tuple[Encoder, ...] = ("trained",),
    ranks: tuple[int, ...] = (1, 5, 10),
    options: SetOptions | None = None,
    tell: Tell = _tell_nobody,
) -> RetrievalResult:
    """Return the retrieval scores of the images of `query` in the shards `gallery`.

    The other arguments are those of `knn_of_run`. Raises UserError.
    """
    by_encoder: dict[Encoder, RetrievalScore] = {}
    counts = SetCounts(0), SetCounts(0)
    sets = {"query": query, "gallery": gallery}
    step, found = _features_of_run(run, sets, encoders, options or SetOptions(), tell)
    for encoder, (first, second) in found:
        query_y, gallery_y = number_classes(first, second)
        by_encoder[encoder] = retrieve(first.features, query_y, second.features, gallery_y, ranks)
        counts = first.counts, second.counts
    return RetrievalResult(by_encoder, *counts, step)


def _features_of_run(
    run: Path,
    patterns: Mapping[str, str],
    encoders: tuple[Encoder, ...],
    options: SetOptions,
    tell: Tell,
) -> tuple[int, Iterator[tuple[Encoder, _Both]]]:
    """Return the step of the checkpoint, and both sets, given by name, for each encoder."""
    _, newest = find_checkpoint(run)
    settings = read_toml(checkpoint.find_settings(newest))
    step = int(checkpoint.read_fields(newest)["step"])
    if "untrained" in encoders and settings.backbone.weights:
        _build(settings, "untrained", newest)  # its file may be gone: told before any shard is read
    reader = RangeReader()
    admission = settings.admission
    if options.image_member is not None:
        admission = replace(admission, image_member=options.image_member)
    sets = {
        which: LabelledSet(
            manifest=open_manifest(pattern, reader, keys=options.keys),
            reader=reader,
            label=options.label,
            admission=admission,
        )
        for which, pattern in patterns.items()
    }
    for which, data in sets.items():
        for line in probe_layout(data.manifest, reader, admission, with_pixels=False).lines:
            tell(f"{which} set: {line}")
    pixels = options.size or settings.largest_crop

    def embed_both() -> Iterator[tuple[Encoder, _Both]]:
        for encoder in encoders:
            backbone = _build(settings, encoder, newest)
            first, second = (
                embed_set(backbone, which, data, pixels, options.max_left_out)
                for which, data in sets.items()
            )
            yield encoder, (first, second)

    return step, embed_both()


def find_checkpoint(run: Path) -> tuple[Path | None, Path]:
    """Return the run folder and the checkpoint for a path to either. Raises UserError.

    The folder is None for a checkpoint that was copied out of its run.
    """
    if (run / "state.json").exists():
        folder = run.absolute().parent.parent
        is_of_run = (
            run.absolute().parent.name == "checkpoints" and (folder / "config.toml").exists()
        )
        return folder if is_of_run else None, run
    checkpoints = checkpoint.list_checkpoints(run)
    if not checkpoints:
        raise ConfigError(
            f"{run} holds no checkpoint; give the folder of a run that has saved one "
            "(--out of `streamssl pretrain`), or a folder such as runs/a/checkpoints/step-00001000"
        )
    return run, checkpoints[-1]


def _build(settings: RunConfig, encoder: Encoder, newest: Path) -> nn.Module | None:
    if encoder == "raw pixels":
        return None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(settings.seed)  # gives the initial weights of the run
    network = settings.backbone
    if encoder == "trained":
        backbone = build_backbone(network.without_weights(), settings.largest_crop)
        checkpoint.load_backbone(newest, backbone)
    else:
        backbone = _build_untrained(network, settings.largest_crop)
    moved: nn.Module = backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def _build_untrained(network: BackboneConfig, crop_size: int) -> nn.Module:
    if network.fetched:
        raise ConfigError(
            f"the untrained encoder of this run would be fetched from {redact(network.fetched)}, "
            "an address in its config.toml; an evaluation fetches nothing: leave --baselines out, "
            "the trained encoder needs no address"
        )
    try:
        return build_backbone(network, crop_size)
    except ConfigError as error:
        if not network.weights:
            raise
        raise ConfigError(
            f"the untrained encoder of this run is {network.weights}, which cannot be loaded "
            f"({error}); put it back, or leave --baselines out: the trained encoder needs no file"
        ) from error
