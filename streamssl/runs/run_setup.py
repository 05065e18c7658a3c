"""Preparation of a run before its first batch: settings, order, state, journal."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from shards.errors import ConfigError
from shards.records import Cursor
from shards.stream.batch_stream import build_order, check_bytes
from shards.stream.journal import Journal
from shards.stream.order import Order
from shards.stream.sample_slots import check_cursor
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.methods.distillation_config import DistillationConfig
from streamssl.config.run_config import RunConfig, check_same, read_toml
from streamssl.methods.distillation import find_network
from streamssl.runs.divergence import check_divergence
from streamssl.runs.file_names import JOURNAL
from streamssl.runs.run_branch import RunBranch, find_start, new_branch
from streamssl.runs.run_data import OpenedData, open_journal
from streamssl.runs.run_folder import is_same_start
from streamssl.training.train_state import build_state


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run before its first batch.

    Batches up to block `changed_from` must equal those of its log; from that block on the user
    has changed the data. None: no change. `branch` begins with the first batch.
    """

    config: RunConfig
    data: OpenedData
    out: Path
    order: Order
    state: TrainState
    device: torch.device
    journal: Journal
    changed_from: int | None
    branch: RunBranch | None = None


def open_run(
    config: RunConfig,
    data: OpenedData,
    out: Path,
    console: Console,
    named: str | None = None,
) -> PreparedRun:
    """Resume the newest checkpoint of `out` or the `named` one, or start a run.

    Raises UserError.
    """
    order = build_order(data.manifest, config.stream, config.seed, subset=data.subset_digest)
    config = _resolve(config, order, out)
    check_bytes(data.manifest, order, config.stream, config.crops.num_bytes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start, is_branch = find_start(out, named, config)
    check_divergence(config, out, start, console)
    state = build_state(config, device, fresh=start is None)
    branch = None
    if start is not None:
        _resume(config, order, state, start, named=is_branch)
        if is_branch:
            branch = new_branch(out, state.step, config)
    if state.step >= config.num_steps:
        raise ConfigError(
            f"{out} has all its {config.num_steps} steps; raise --num-steps to train on, or give "
            "a new --out"
        )
    num = len(data.manifest.shards)
    shards = f"{num} shard{'s' if num > 1 else ''}"
    position = _start(config) if start is None else f"resuming at step {state.step}"
    console.print(f"{config.method_name} on {shards}, {position}, into {out}", highlight=False)
    if data.subset is not None:
        console.print(f"only the samples of a list: {data.subset.summary}", highlight=False)
    journal, changes, since = open_journal(out / JOURNAL, order, data, state.cursor)
    for change in changes:
        console.print(f"from block {since} on {change}", highlight=False)
    if start is None and not is_same_start(out, config, order):
        since = 0
    order = order.reweighted(journal.weights)
    return PreparedRun(config, data, out, order, state, device, journal, since, branch)


def _start(config: RunConfig) -> str:
    """Return the number of steps of a new run, and the weights that it starts from."""
    source = getattr(config.method, "start", "") or config.backbone.weights
    return f"{config.num_steps} steps from {source or 'random weights'}"


def _resolve(config: RunConfig, order: Order, out: Path) -> RunConfig:
    """Return the configuration with what the data and other runs say, which a resume needs."""
    stream = replace(
        config.stream,
        chunk_bytes=order.config.chunk_bytes,
        chunks_per_block=order.config.chunks_per_block,
    )
    method = config.method
    if isinstance(method, DistillationConfig):
        method = _with_network(method, out)
    return replace(config, stream=stream, method=method)


def _with_network(method: DistillationConfig, out: Path) -> DistillationConfig:
    """Return the settings with the network of the teacher, whose folder may be gone later."""
    if not checkpoint.list_checkpoints(out):
        return replace(method, network=find_network(method.teacher))
    saved = read_toml(out / "config.toml").method
    return replace(method, network=getattr(saved, "network", None))


def _resume(
    config: RunConfig, order: Order, state: TrainState, start: Path, *, named: bool
) -> None:
    """Restore `state` from a checkpoint of its run."""
    fields = checkpoint.read_fields(start)
    checkpoint.check_method(start, fields, config.method_name)
    cursor = Cursor.from_json(fields["cursor"])
    # Another setting often gives another order, too. The message must name the setting.
    if cursor.manifest == order.manifest:
        old = read_toml(start.parent.parent / "config.toml")
        check_same(old, config, start.name, named=named)
    check_cursor(order, cursor)
    checkpoint.restore(start, state, config.method_name)
    found = checkpoint.find_not_finite(checkpoint.named(state)[0])
    if found is not None:
        raise ConfigError(
            f"{start} has numbers that are not finite in {found}: no training mends them; "
            f"{_older_remedy(config, state, start)}"
        )


def _older_remedy(config: RunConfig, state: TrainState, bad: Path) -> str:
    """Return a remedy that names the newest finite checkpoint before a bad one."""
    saved = checkpoint.list_checkpoints(bad.parent.parent)
    for older in reversed(saved[: saved.index(bad)]):
        checkpoint.restore(older, state, config.method_name)
        if checkpoint.find_not_finite(checkpoint.named(state)[0]) is None:
            return f"add --from {older.name} to the same command to go on from there"
    return "no older one is finite: give a new --out"
