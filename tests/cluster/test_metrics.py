"""Prometheus sees what happened, through a loopback port, with few labels."""

import socket
import urllib.error
import urllib.request
from typing import get_args

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import Metrics, MetricsServer
from shards.errors import ConfigError
from shards.records import Chunk, ChunkCrops, Reason, Reject

REASONS = get_args(Reason)


def count_chunk(
    metrics: Metrics, num_kept: int = 3, num_rejected: int = 1, num_unselected: int = 0
) -> None:
    num = num_kept + num_rejected
    metrics.chunk_cropped(
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


def count_step(metrics: Metrics, step: int, *rejects: Reject) -> None:
    metrics.step_trained(
        step=step,
        loss=0.25,
        lr=0.1,
        num_samples=16,
        step_seconds=0.2,
        data_wait_seconds=0.1,
        rejects=rejects,
    )


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Every sample of a page: (name, label values in the order of their names) -> value."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.status == 200
        body = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def test_a_scrape_has_what_was_counted() -> None:
    """By stage and reason, with units in the names."""
    metrics = Metrics()
    with MetricsServer(metrics) as server:
        count_chunk(metrics)
        count_chunk(metrics, num_kept=2, num_rejected=0, num_unselected=5)
        count_step(metrics, 1)
        count_step(metrics, 2, Reject(0, 0, "k", "empty"), Reject(0, 1, "k", "too_small"))
        metrics.lost_readers.inc()
        found = scrape(server.url)
    expected = {
        ("streamssl_samples_total", "read"): 11,
        ("streamssl_samples_total", "unselected"): 5,
        ("streamssl_samples_total", "cropped"): 5,
        ("streamssl_samples_total", "trained"): 32,
        ("streamssl_rejects_total", "empty"): 1,
        ("streamssl_rejects_total", "too_small"): 1,
        ("streamssl_reader_busy_seconds_total", "read"): 1.0,
        ("streamssl_reader_busy_seconds_total", "crop"): 4.0,
        ("streamssl_crop_bytes_total",): 5 * 2 * 4 * 4 * 3,
        ("streamssl_readers_lost_total",): 1,
        ("streamssl_data_wait_seconds_total",): 0.2,
        ("streamssl_step_seconds_count",): 2,
        ("streamssl_step_seconds_sum",): 0.4,
        ("streamssl_loss",): 0.25,
        ("streamssl_learning_rate",): 0.1,
        ("streamssl_train_step",): 2,
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected)


def test_what_control_counted_goes_on_when_a_new_one_counts_from_nothing() -> None:
    """A counter that falls would be taken for a restart of the run."""
    metrics = Metrics()
    gauges = {("control_term", ""): 1.0, ("actors", "reader"): 2.0}
    metrics.cluster({("samples", "read"): 7.0, ("generations", ""): 3.0, **gauges})
    metrics.cluster({("samples", "read"): 9.0, ("generations", ""): 3.0, **gauges})
    again = {("samples", "read"): 4.0, ("generations", ""): 1.0}
    metrics.cluster({**again, ("control_term", ""): 2.0, ("actors", "reader"): 1.0})
    with MetricsServer(metrics) as server:
        found = scrape(server.url)
    assert found["streamssl_samples_total", "read"] == 13
    assert found["streamssl_generations_total",] == 4
    assert found["streamssl_control_term",] == 2 and found["streamssl_actors", "reader"] == 1


def test_labels_stay_few_whatever_the_data() -> None:
    """A label with a key, a shard or a URL in it would be a series for every sample."""
    metrics = Metrics()
    for number in range(500):
        reason = REASONS[number % len(REASONS)]
        reject = Reject(number, number, f"key{number}", reason, f"detail {number}")
        count_step(metrics, number, reject)
        count_chunk(metrics)
    with MetricsServer(metrics) as server:
        found = scrape(server.url)
    assert {key[1] for key in found if key[0] == "streamssl_rejects_total"} == set(REASONS)
    assert len(found) < 100


def test_two_runs_in_one_process_count_apart() -> None:
    """A global registry would refuse the second run, or add the two up."""
    one, other = Metrics(), Metrics()
    count_step(one, 7)
    with MetricsServer(one) as first, MetricsServer(other) as second:
        assert scrape(first.url)["streamssl_train_step",] == 7
        assert scrape(second.url)["streamssl_train_step",] == 0


def test_it_listens_on_the_loopback_only() -> None:
    """Nobody on the network is let in by default."""
    with MetricsServer(Metrics()) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        listening = [
            connection.laddr.ip
            for connection in psutil.Process().net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        ]
    assert listening == ["127.0.0.1"]


def test_a_taken_port_is_a_sentence() -> None:
    """Before anything is trained, with the remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(.*in use.*another --metrics-port"):
            MetricsServer(Metrics(), port)


def test_the_port_is_free_again_after_the_run() -> None:
    """A resume with the same --metrics-port must work at once."""
    with MetricsServer(Metrics()) as server:
        url = server.url
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    port = int(url.split(":")[2].split("/")[0])
    with MetricsServer(Metrics(), port) as server:
        assert server.url == url
