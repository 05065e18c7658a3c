"""Chunks and steps counted by hand, and the samples of a scrape."""

import socket
import urllib.request

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.process_pages import DebugPorts
from shards.records import Chunk, ChunkCrops, Reject
from streamssl.monitoring.catalogue import METRICS


def count_chunk(
    hub: MetricsHub, num_kept: int = 3, num_rejected: int = 1, num_unselected: int = 0
) -> None:
    num = num_kept + num_rejected
    hub.chunk_cropped(
        ChunkCrops(
            Chunk(0, 0, 100),
            0,
            np.arange(num),
            np.arange(num) < num_kept,
            (np.zeros((num_kept, 2, 4, 4, 3), np.uint8),),
            tuple(Reject(0, offset, "k", "empty") for offset in range(num_rejected)),
            read_seconds=0.5,
            crop_seconds=2.0,
            num_unselected=num_unselected,
        )
    )


def count_step(hub: MetricsHub, step: int, *rejects: Reject) -> None:
    hub.step_trained(
        step=step,
        num_samples=16,
        step_seconds=0.2,
        data_wait_seconds=0.1,
        rejects=rejects,
        phase_seconds={"copy": 0.05, "optimizer": 0.15},
        readings={("loss",): 0.25, ("learning_rate",): 0.1},
    )


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
        return answer.read()


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a page: (name, label values in the order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(fetch(url).decode())
        for sample in family.samples
    }


def some_ports(num: int) -> DebugPorts:
    """Return consecutive ports that are free at this moment."""
    # Each call draws anew: tests in parallel processes must not pick the same ports.
    with socket.create_server(("127.0.0.1", 0)) as drawn:
        start = drawn.getsockname()[1]
    for first in range(start, start + 2000, num):
        try:
            for port in range(first, first + num):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return DebugPorts(first, first + num - 1, metrics=METRICS)
    raise AssertionError("no ports are free")
