"""Live page of a run: the parts that it adds to the run's server and to `/state`.

`sections` of `/state` then holds

    answers    by section (progress, stalled, stage, rejected, seen, who, cost, and the sections of
               other planes): tone ("good", "watch", "bad", "quiet"), short, text; a question
               without an answer is missing
    gallery    crops and rejects, each a list, the newest first: name, key, reason ("" of crops),
               detail, where, step, image (an address, or null), waits (true while it is made)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.monitoring.http_server import Page
from cluster.monitoring.live.gallery import Gallery
from cluster.monitoring.live.live_answers import answers
from cluster.monitoring.live.page_files import live_pages
from cluster.monitoring.live.page_section import PageSection
from cluster.monitoring.live.run_window import WINDOW_SECONDS, RunWindow
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.steady_clock import steady_time


def add_live_page(
    hub: MetricsHub, sections: Sequence[PageSection] = (), gallery: Gallery | None = None
) -> dict[str, Page]:
    """Add answers and galleries to the `/state` of `hub`; return the pages that show them."""

    def answer() -> Mapping[str, Any]:
        since = 0.0 if hub.outcome is not None else steady_time() - WINDOW_SECONDS
        items = () if gallery is None else gallery.items()
        num_crops = sum(not item.reason for item in items)
        return answers(RunWindow(hub.catalogue, hub.state(since)), sections, num_crops)

    hub.sections["answers"] = answer
    if gallery is not None:
        hub.sections["gallery"] = gallery.view
        hub.step_observer = gallery.offer
    return live_pages(sections, gallery)
