"""The live page of a run: what is added to its server, and to its `/state`.

`sections` of `/state` then has

    answers    by question (progress, stalled, stage, learning, rejected, seen, who, cost): tone
               ("good", "watch", "bad", "quiet"), short, text; those without an answer are missing
    gallery    crops and rejects, each a list, the newest first: name, key, reason ("" of crops),
               detail, where, step, image (an address, or null), waits (whether it is being made)
"""

import time
from collections.abc import Mapping
from typing import Any

from cluster.monitoring.http_server import Page
from cluster.monitoring.live.gallery import Gallery
from cluster.monitoring.live.gallery_pages import live_pages
from cluster.monitoring.live.live_answers import WINDOW_SECONDS, answers
from cluster.monitoring.metrics_hub import Metrics


def show_live(metrics: Metrics, gallery: Gallery | None = None) -> dict[str, Page]:
    """Put answers and galleries into the `/state` of `metrics`; the pages that show them."""

    def answer() -> Mapping[str, Any]:
        ended = metrics.ended is not None
        since = 0.0 if ended else time.time() - WINDOW_SECONDS
        places = () if gallery is None else gallery.places()
        return answers(metrics.state(since), sum(not place.reason for place in places))

    metrics.sections["answers"] = answer
    if gallery is not None:
        metrics.sections["gallery"] = gallery.look
        metrics.onlooker = gallery.offer
    return live_pages(gallery)
