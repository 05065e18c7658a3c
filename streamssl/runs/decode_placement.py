"""Choice of the actors that decode the images of a run on a cluster; it is kept with the run.

The choice changes no crop: see `cluster.trainers.trainer_crops`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from rich.console import Console

from cluster.protocol.node_pools import parse_pools
from shards.crops.sample_cropper import CropJob
from shards.errors import ConfigError
from shards.files import write_atomic
from shards.plain_json import to_json
from streamssl.config.run_config import RunConfig
from streamssl.runs.file_names import CONTROL
from streamssl.runs.placement import DecodePlace, Placement
from streamssl.runs.run_setup import PreparedRun

_FILE: Final = "decode.json"
# Trainers that also decode may train more slowly, so the gain must be clear.
_MIN_GAIN = 1.25


def check_engine(config: RunConfig, placement: Placement) -> None:
    """Raise ConfigError if the engine needs a GPU that the cropping process will not have."""
    if config.engine != "dali-gpu":
        return
    if placement.decode == "readers":
        raise ConfigError(
            "engine='dali-gpu' with --decode readers, which get no GPU; leave --decode out, so "
            "that trainers crop, or use --engine native"
        )
    if placement.trainer_gpus == 0:
        raise ConfigError(
            "engine='dali-gpu' with --trainer-gpus 0; it crops on the GPUs of trainers: give each "
            "one, or use --engine native on CPUs"
        )
    if placement.cluster in ("none", "local") and not torch.cuda.is_available():
        raise ConfigError(
            "engine='dali-gpu', but torch sees no NVIDIA GPU; use --engine native on CPUs"
        )


def place_of_decoding(
    run: PreparedRun,
    placement: Placement,
    job: CropJob,
    trainer_options: Mapping[str, Any],
    console: Console,
) -> DecodePlace:
    """Return the actors that crop: as requested, or as the run began, or the faster ones.

    Needs a connection to Ray. Raises ConfigError, ShardUnreadable.
    """
    engine, requested = run.config.engine, placement.decode
    if engine == "dali-gpu" and not trainer_options.get("num_gpus"):
        raise ConfigError(
            "engine='dali-gpu', but the Ray cluster has no GPU at this moment; give "
            "--trainer-gpus 1 if it launches nodes with some, or use --engine native"
        )
    known = _read(run)
    # Runs of earlier versions call the rates `pictures_per_second`.
    rates: dict[str, float] = known.get("images_per_second", known.get("pictures_per_second", {}))
    place: DecodePlace
    if requested in ("readers", "trainers"):
        place = requested
    elif known:
        place = known["decode"]
    elif engine == "dali-gpu":
        place = "trainers"
    elif requested == "auto":
        place, rates = _measure(run, placement, job, trainer_options, console)
    else:
        place = "readers"
    _write(run, {"decode": place, "engine": engine, "images_per_second": rates})
    if place == "trainers":
        console.print(f"readers verify images, trainers crop them ({engine})", highlight=False)
    return place


def _measure(
    run: PreparedRun,
    placement: Placement,
    job: CropJob,
    trainer_options: Mapping[str, Any],
    console: Console,
) -> tuple[DecodePlace, dict[str, float]]:
    """Return the faster place with all readers and trainers, and the rates of both."""
    from cluster.readers.throughput_probe import measure_rates  # imports Ray

    cursor = run.state.cursor
    chunk = run.order.block(0 if cursor is None else cursor.block)[0].chunk
    found = measure_rates(
        job,
        run.data.manifest.shards[chunk.shard],
        chunk,
        {
            "reader": parse_pools(placement.reader_pools),
            "trainer": parse_pools(placement.trainer_pools),
        },
        trainer_options,
    )
    num_readers = placement.reader_limit
    by_readers = found.by_readers(num_readers)
    by_trainers = found.by_trainers(num_readers, placement.trainers)
    place: DecodePlace = "trainers" if by_trainers > _MIN_GAIN * by_readers else "readers"
    console.print(
        f"--decode auto: {place}; {num_readers} readers crop {by_readers:,.0f} images/s; "
        f"if readers verify and {placement.trainers} trainers crop, {by_trainers:,.0f}/s",
        highlight=False,
    )
    return place, {"readers": round(by_readers, 1), "trainers": round(by_trainers, 1)}


def _read(run: PreparedRun) -> dict[str, Any]:
    """Return the saved choice for this run and engine; empty if there is none."""
    try:
        fields: dict[str, Any] = json.loads((run.out / CONTROL / _FILE).read_text())
        fits = fields["engine"] == run.config.engine
        fits = fits and fields["decode"] in ("readers", "trainers")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return fields if fits else {}


def _write(run: PreparedRun, fields: Mapping[str, Any]) -> None:
    folder = run.out / CONTROL
    folder.mkdir(exist_ok=True)
    write_atomic(folder / _FILE, to_json(fields))
