"""`streamssl status`: the status of Control as tables for a terminal."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.protocol.lease_counters import LeaseSnapshot, RunningLease
from cluster.protocol.run_status import ActorStatus, NodeStatus, Status, TimedEvent
from shards.errors import ConfigError
from streamssl.commands.status import find_access, parse_status, render

LEASE = RunningLease(
    task=1,
    epoch=1,
    reader="reader-1.2",
    shard="s3://bucket/1.tar",
    seconds=12.0,
    isolated=False,
    hedge=False,
)
STATUS = Status(
    term=2,
    seconds=100.0,
    step=41,
    num_steps=100,
    planned=57,
    generation="3",
    world=2,
    step_seconds=0.25,
    wanted={"reader": 20, "trainer": 2},
    scaling="20 readers: starved",
    rates={"trained": 640.0, "cropped": 700.0, "busy": 0.9},
    nodes=(
        NodeStatus(
            node="a" * 56,
            address="10.0.0.7",
            labels={"pool": "readers", "ray.io/node-id": "a" * 56},
            num_readers=20,
            num_trainers=0,
            cores=16.0,
            leaves_in=90.0,
        ),
    ),
    actors=(
        *(
            ActorStatus(name=f"reader-1.{n}", role="reader", node="a" * 56, pid=n, phase="works")
            for n in range(20)
        ),
        ActorStatus(
            name="trainer-1.30",
            role="trainer",
            node="b" * 56,
            pid=99,
            phase="running",
            step=41,
            rank=0,
            doing="data",
        ),
    ),
    leases=LeaseSnapshot(
        num_readers=20,
        num_waiting=3,
        num_running=80,
        num_held=50,
        held_bytes=5 << 30,
        deadline=15.0,
        oldest=(LEASE,),
    ),
    decisions=(TimedEvent(seconds=7.0, what="20 readers wanted", why="starved"),),
    recoveries=(),
    readings={},
    pending=("2 x readers",),
)


def page(status: Status) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(render(status))
    return console.export_text()


def test_the_page_shows_actors_rates_and_decisions() -> None:
    """A user asks first: does it train, what does it wait for, why did it scale."""
    text = page(STATUS)
    for wanted in (
        "step 41 of 100, planned up to 57; generation 3 of 2 trainers; 0.25 s a step",
        "640 trained on, 700 cropped; readers are busy 90% of their time",
        "wanted: 20 readers, 2 trainers (20 readers: starved); Control of term 2",
        "nodes are starting: 2 x readers",
        "leaves in 90 s",
        "pool=readers",
        "running, data",
        "and 4 more readers",
        "5,120 MiB; oldest lease: reader-1.2 for 12.0 s, s3://bucket/1.tar",
        "7.0 s ago  20 readers wanted (starved)",
    ):
        assert wanted in text, text
    assert "ray.io" not in text


def test_debug_pages_of_processes_are_listed_if_there_are_any() -> None:
    """Their addresses help to find a hung process; without them the column is left out."""
    assert "pages" not in page(STATUS)
    trainer = replace(STATUS.actors[-1], pages="10.0.0.7:9503")
    text = page(replace(STATUS, actors=(trainer,), pages={"control": "10.0.0.1:9500"}))
    assert "pages of control: http://10.0.0.1:9500/stacks" in text
    assert "┃ pages " in text and "│ 10.0.0.7:9503 │" in text


def test_a_run_without_a_cluster_has_no_status(tmp_path: Path) -> None:
    """A run in threads has no Control; the message must not be an error of Ray."""
    with pytest.raises(ConfigError, match=r"is not a run .*no config.toml"):
        find_access(parse_status([str(tmp_path)]))
    with pytest.raises(ConfigError, match=r"needs the folder of a run, or --address"):
        parse_status([])
