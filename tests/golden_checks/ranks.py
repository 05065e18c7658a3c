"""Gloo processes for comparisons on several ranks."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], num_ranks: int, *arguments: Any) -> list[Any]:
    """Call `function(group, *arguments)` on every rank; return the results by rank.

    `function` must be importable; results are tensors, containers and plain values.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (function, num_ranks, folder, arguments), nprocs=num_ranks)
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(num_ranks)]


def _work(
    rank: int, function: Callable[..., Any], num_ranks: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=50),
    )
    try:
        torch.save(function(dist.group.WORLD, *arguments), Path(folder, f"{rank}.pt"))
        dist.barrier()
    finally:
        dist.destroy_process_group()
