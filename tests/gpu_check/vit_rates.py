"""MoCo v3 with ViT-S/16: images a second, and the share of the peak of the GPU."""

import itertools

import torch

from streamssl.training.utilization import peak_flops
from tests.gpu_check.step_flops import flops_of
from tests.gpu_check.training import build_learner, made_batch, run_steps, vit_config
from tests.gpu_check.workload import gigabytes, seconds_per_call


def measure(device: str, data: str | None) -> dict[str, object]:
    """Return images a second and the model FLOPs utilization of steps on crops that are there."""
    del data
    config = vit_config(device)
    num_images = config.stream.batch_size
    batch = made_batch(config.crops, num_images, device)
    learner = build_learner(config, device)
    num_steps = 5 if device == "cuda" else 1

    def steps() -> None:
        run_steps(learner, itertools.repeat(batch), num_steps)

    step = seconds_per_call(steps, device, 4 if device == "cuda" else 1) / num_steps
    flops = flops_of(steps) / num_steps
    peak = peak_flops(torch.device(device), config.precision)
    return {
        "images_per_second": round(num_images / step, 1),
        "flops_utilization": peak and round(flops / step / peak, 3),
        "teraflops_per_step": round(flops / 1e12, 4),
        "gigabytes": gigabytes(device),
        "batch": num_images,
    }
