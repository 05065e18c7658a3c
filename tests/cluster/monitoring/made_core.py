"""A ControlCore without the actor around it, on shards in a folder of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.actors.node_watch import Node, Nodes, NodeWatch
from cluster.control.control_core import ControlCore
from cluster.control.control_spec import ControlSpec, ControlStart, mark_folder
from cluster.protocol.messages import StateRef
from cluster.protocol.node_pools import parse_pools
from shards.samples.admission_config import AdmissionConfig
from shards.stream.batch_stream import build_order
from shards.stream.stream_config import StreamConfig
from tests.cluster.marked import MarkedShards

STREAM = StreamConfig(batch_size=6, chunk_bytes=1 << 14, chunks_per_block=2)
READERS, TRAINERS = ("pool=readers", "pool=spare"), ("pool=trainers",)


def node(name: str, pool: str, *, free: float = 0.75, leaves_at: float | None = None) -> Node:
    """Of a pool, with a quarter of its object store in use."""
    return Node(
        id=name,
        address="127.0.0.1",
        kind=pool,
        labels={"pool": pool},
        total={"CPU": 2.0, "object_store_memory": 100.0},
        free={"CPU": 2.0, "object_store_memory": 100.0 * free},
        leaves_at=leaves_at,
    )


@contextmanager
def made_core(*nodes: Node) -> Iterator[ControlCore]:
    """Control's knowledge of a run of up to four readers and two trainers, on these nodes."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        shards = MarkedShards(out / "shards", 4, {})
        spec = ControlSpec(
            folder=out / ".control",
            journal=out / "journal.jsonl",
            manifest=shards.manifest,
            order=build_order(shards.manifest, STREAM, 0),
            stream=STREAM,
            admission=AdmissionConfig(),
            num_steps=10,
            readers=(2, 4),
            trainers=2,
            pools={"reader": parse_pools(READERS), "trainer": parse_pools(TRAINERS)},
        )
        start = ControlStart(
            state=StateRef(0, (), None), begun=False, nonce=mark_folder(spec.folder)
        )
        watch = NodeWatch(latest=Nodes(seen=0.0, alive=nodes))
        with ControlCore(spec, start, watch, lambda: None) as core:
            yield core
