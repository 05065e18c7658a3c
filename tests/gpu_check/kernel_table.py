"""The kernels that take most of a step of SwAV, by the profiler of torch."""

import itertools
from typing import Any

from torch.profiler import ProfilerActivity, profile

from tests.gpu_check.training import build_learner, made_batch, run_steps, swav_config
from tests.gpu_check.workload import synchronize

_NUM_ROWS, _NAME_LENGTH = 15, 80


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return the launches of a step, and its longest kernels with their share of all time."""
    del data
    config, on_gpu = swav_config(device), device == "cuda"
    batch = made_batch(config.crops, config.stream.batch_size, device)
    learner = build_learner(config, device)
    num_steps = 3 if on_gpu else 1
    run_steps(learner, itertools.repeat(batch), num_steps)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    synchronize(device)
    with profile(activities=activities) as profiler:
        run_steps(learner, itertools.repeat(batch), num_steps)
        synchronize(device)
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows: list[Any] = [
        row
        for row in profiler.key_averages()
        if not on_gpu or str(row.device_type).endswith("CUDA")
    ]
    rows.sort(key=lambda row: getattr(row, spent), reverse=True)
    total = sum(getattr(row, spent) for row in rows)
    return {
        "launches_per_step": round(sum(row.count for row in rows) / num_steps),
        "ms_per_step": round(total / 1000 / num_steps, 2),
        "kernels": [
            {
                "name": row.key[:_NAME_LENGTH],
                "calls": round(row.count / num_steps, 1),
                "ms": round(getattr(row, spent) / 1000 / num_steps, 3),
                "share": round(getattr(row, spent) / max(total, 1e-9), 3),
            }
            for row in rows[:_NUM_ROWS]
        ],
    }
