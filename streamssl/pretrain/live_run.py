"""What a person sees of a run in a browser: its live page, and what is kept of it for later."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from cluster.monitoring.live.gallery import Gallery, Place
from cluster.monitoring.live.live_page import show_live
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from streamssl.runs.crop_job import crop_job
from streamssl.runs.file_names import METRICS_ADDRESS
from streamssl.runs.run_setup import PreparedRun

GALLERY: Final = "gallery.json"  # which rejects and crops it showed last


@contextmanager
def show_run(run: PreparedRun, metrics: MetricsHub, port: int) -> Iterator[MetricsServer]:
    """Serve /metrics and the live page of a run, and keep what its galleries showed last."""
    gallery = Gallery(run.data.manifest, crop_job(run.config, run.data))
    gallery.fill(read_places(run.out, len(run.data.manifest.shards)))
    pages = show_live(metrics, gallery)
    address_file = run.out / METRICS_ADDRESS
    with gallery, MetricsServer(metrics, port, pages, address_file) as server:
        try:
            yield server
        finally:
            places = [asdict(place) for place in gallery.places()]
            if places and (run.out / "config.toml").exists():
                _write(run.out / GALLERY, {"places": places})


def read_places(out: Path, num_shards: int) -> list[Place]:
    """What the galleries of a run showed last; nothing where that was not kept, or is damaged."""
    try:
        saved = json.loads((out / GALLERY).read_text())["places"]
        places = [Place(**place) for place in saved]
        return [place for place in places if 0 <= place.shard < num_shards]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def address_of(out: Path) -> str:
    """Where the page of a run that trains is; empty where nobody wrote it down."""
    try:
        return f"{(out / METRICS_ADDRESS).read_text()}/"
    except (OSError, ValueError):
        return ""


def _write(path: Path, fields: dict[str, Any]) -> None:
    """There whole, or as it was before."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(fields))
    os.replace(draft, path)
