"""Live page of a run while it trains."""

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cluster.monitoring.http_server import Page
from cluster.monitoring.live.gallery import Gallery
from cluster.monitoring.live.live_page import add_live_page
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from shards.file_systems import explain_storage
from streamssl.monitoring.learning_section import LEARNING_SECTION
from streamssl.pretrain.run_gallery import open_gallery, write_gallery
from streamssl.pretrain.run_thumbnails import thumbnail_maker
from streamssl.runs.file_names import METRICS_ADDRESS
from streamssl.runs.run_access import open_to_commands
from streamssl.runs.run_setup import PreparedRun

_log = logging.getLogger(__name__)


@contextmanager
def show_run(
    run: PreparedRun, hub: MetricsHub, port: int, desk: Mapping[str, Page]
) -> Iterator[MetricsServer]:
    """Serve /metrics and the live page of a run; keep the items of its galleries at the end.

    `desk` are pages for commands of the run's user.
    """
    open_maker = partial(thumbnail_maker, run.config, run.data)
    gallery = open_gallery(run.out, run.data.manifest.shards, open_maker)
    pages = {**add_live_page(hub, [LEARNING_SECTION], gallery), **desk}
    token = secrets.token_hex(32)
    with (
        gallery,
        MetricsServer(hub, port, pages, run.out / METRICS_ADDRESS, token) as server,
        open_to_commands(run.out, server.address, token),
    ):
        try:
            yield server
        finally:
            if (run.out / "config.toml").exists():
                _keep_items(run.out, gallery)


def _keep_items(out: Path, gallery: Gallery) -> None:
    """Write the items of the galleries; a run does not fail because of its page."""
    try:
        write_gallery(out, gallery)
    except OSError as error:
        _log.warning(
            "the images of the live page could not be kept in %s: %s",
            out,
            explain_storage(error, out),
        )
