"""SwAV with ResNet-50 on crops that are there: images a second, memory, and plain PyTorch's time.

Ours and the plain program take turns, so that clocks and neighbours affect both alike.
"""

import itertools
import time
from collections.abc import Callable
from statistics import median

import torch

from streamssl.training.utilization import peak_flops
from tests.gpu_check.plain_swav import PlainSwAV
from tests.gpu_check.step_flops import flops_of
from tests.gpu_check.training import build_learner, made_batch, run_steps, swav_config
from tests.gpu_check.workload import gigabytes, synchronize


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return images a second from crops on host and GPU, and the ratio to plain steps."""
    del data
    config, on_gpu = swav_config(device), device == "cuda"
    num_images = config.stream.batch_size
    on_host, there = (made_batch(config.crops, num_images, place) for place in ("cpu", device))
    learner = build_learner(config, device)
    warm_up, num_steps, turns = (3, 5, 5) if on_gpu else (1, 1, 2)
    run_steps(learner, itertools.repeat(there), warm_up)
    memory = {"ours": gigabytes(device)}
    plain = PlainSwAV(config, device)
    tensors = [torch.as_tensor(group) for group in there.crops]
    for _ in range(warm_up):
        plain.step(tensors)
    memory["both"] = gigabytes(device)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: run_steps(learner, itertools.repeat(there), num_steps),
        "ours_from_host": lambda: run_steps(learner, itertools.repeat(on_host), num_steps),
        "plain": lambda: [plain.step(tensors) for _ in range(num_steps)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            synchronize(device)
            began = time.perf_counter()
            call()
            synchronize(device)
            seconds[name].append((time.perf_counter() - began) / num_steps)
    flops = flops_of(lambda: run_steps(learner, itertools.repeat(there), 1))
    peak = peak_flops(torch.device(device), config.precision)
    step = median(seconds["ours"])
    return {
        "images_per_second": {
            name: round(num_images / median(found), 1) for name, found in seconds.items()
        },
        "step_time_to_plain": round(
            median(a / b for a, b in zip(seconds["ours"], seconds["plain"], strict=True)), 3
        ),
        "flops_utilization": peak and round(flops / step / peak, 3),
        "gigabytes": memory,
        "batch": num_images,
    }
