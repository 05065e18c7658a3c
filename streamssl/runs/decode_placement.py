"""Where the images of a run on a cluster are decoded: chosen once, and kept with the run.

Whatever is chosen changes no crop; see `cluster.trainers.trainer_crops`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Final

import torch
from rich.console import Console

from cluster.protocol.node_pools import parse_pools
from cluster.readers.throughput_probe import DecodeRates, measure_rates
from shards.crops.sample_cropper import CropJob
from shards.errors import ConfigError
from streamssl.config.run_config import RunConfig
from streamssl.runs.file_names import CONTROL
from streamssl.runs.placement import DecodePlace, Placement
from streamssl.runs.run_setup import Run

_FILE: Final = "decode.json"
# What is decoded beside the training may hold it up: it has to be worth it.
_MIN_GAIN = 1.25


def check_engine(config: RunConfig, placement: Placement) -> None:
    """DALI on a GPU crops where the trainer is, so that must have one. Raises ConfigError."""
    if config.engine != "dali-gpu":
        return
    if placement.decode == "readers":
        raise ConfigError(
            "engine='dali-gpu' with --decode readers, which get no GPU; leave --decode out, so "
            "that trainers crop, or use --engine opencv"
        )
    if placement.trainer_gpus == 0:
        raise ConfigError(
            "engine='dali-gpu' with --trainer-gpus 0; it crops on the GPUs of trainers: give each "
            "one, or use --engine opencv on CPUs"
        )
    if placement.cluster in ("none", "local") and not torch.cuda.is_available():
        raise ConfigError(
            "engine='dali-gpu', but torch sees no NVIDIA GPU; use --engine opencv on CPUs"
        )


def place_of_decoding(
    run: Run,
    placement: Placement,
    job: CropJob,
    trainer_options: Mapping[str, Any],
    console: Console,
) -> DecodePlace:
    """Who crops the images of `run`: what is asked for, or as it began, or what is faster.

    Needs a connection to Ray. Raises ConfigError, ShardUnreadable.
    """
    engine, asked = run.config.engine, placement.decode
    if engine == "dali-gpu" and not trainer_options.get("num_gpus"):
        raise ConfigError(
            "engine='dali-gpu', but the Ray cluster has no GPU at this moment; give "
            "--trainer-gpus 1 if it launches nodes with some, or use --engine opencv"
        )
    known = _read(run)
    rates: dict[str, float] = known.get("images_per_second", known.get("pictures_per_second", {}))
    place: DecodePlace
    if asked in ("readers", "trainers"):
        place = asked
    elif known:
        place = known["decode"]
    elif engine == "dali-gpu":
        place = "trainers"
    elif asked == "auto":
        place, rates = _measured(run, placement, job, trainer_options, console)
    else:
        place = "readers"
    _write(run, {"decode": place, "engine": engine, "images_per_second": rates})
    if place == "trainers":
        console.print(f"readers verify images, trainers crop them ({engine})", highlight=False)
    return place


def _measured(
    run: Run,
    placement: Placement,
    job: CropJob,
    trainer_options: Mapping[str, Any],
    console: Console,
) -> tuple[DecodePlace, dict[str, float]]:
    """What is faster with as many readers and trainers as there may be, and both rates."""
    cursor = run.state.cursor
    chunk = run.order.block(0 if cursor is None else cursor.block)[0].chunk
    shard = run.data.manifest.shards[chunk.shard]
    found: DecodeRates = measure_rates(
        job,
        shard,
        chunk,
        {
            "reader": parse_pools(placement.reader_pools),
            "trainer": parse_pools(placement.trainer_pools),
        },
        trainer_options,
    )
    by_readers = found.by_readers(placement.most)
    by_trainers = found.by_trainers(placement.most, placement.trainers)
    place: DecodePlace = "trainers" if by_trainers > _MIN_GAIN * by_readers else "readers"
    console.print(
        f"--decode auto: {place}; {placement.most} readers crop {by_readers:,.0f} images/s; "
        f"verified by them and cropped by {placement.trainers} trainers it is {by_trainers:,.0f}/s",
        highlight=False,
    )
    return place, {"readers": round(by_readers, 1), "trainers": round(by_trainers, 1)}


def _read(run: Run) -> dict[str, Any]:
    """What was chosen for this run and engine before; nothing if nothing was."""
    try:
        fields: dict[str, Any] = json.loads((run.out / CONTROL / _FILE).read_text())
        fits = fields["engine"] == run.config.engine
        fits = fits and fields["decode"] in ("readers", "trainers")
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return fields if fits else {}


def _write(run: Run, fields: Mapping[str, Any]) -> None:
    folder = run.out / CONTROL
    folder.mkdir(exist_ok=True)
    draft = folder / f".{_FILE}.draft"
    draft.write_text(json.dumps(fields))
    os.replace(draft, folder / _FILE)
