"""Learning rates and momenta at every position."""

import numpy as np

from streamssl.optim.schedules import (
    cosine,
    linearly_scaled_lr,
    rising_momentum,
    root_scaled_lr,
    simclr_num_steps,
    simclr_warmup_steps,
    stepped_lr,
    swav_lr,
    warmup_cosine_lr,
)
from tests.golden_checks.vectors import Report, Vectors


def check_schedules(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"(swav[^/]*)/lr$"):
        _check_swav(vectors.under(case), report)
    for case in vectors.match(r"(mocov3[^/]*)/lr$"):
        _check_mocov3(vectors.under(case), report)
    for case in vectors.match(r"(moco_v[^/]*)/lr$"):
        _check_moco(case, vectors.under(case), report)
    for case in vectors.match(r"(patchmix[^/]*)/value$"):
        _check_patchmix(vectors.under(case), report)


def _check_swav(here: Vectors, report: Report) -> None:
    per_epoch, num_epochs = here.count("iters_per_epoch"), here.count("epochs")
    found = [
        swav_lr(
            step,
            num_steps=per_epoch * num_epochs,
            warmup_steps=per_epoch * here.count("warmup_epochs"),
            start_lr=here.number("start_warmup"),
            base_lr=here.number("base_lr"),
            final_lr=here.number("final_lr"),
        )
        for step in range(per_epoch * num_epochs)
    ]
    report.compare(here.prefix + "lr", found, here.array("lr"))


def _check_mocov3(here: Vectors, report: Report) -> None:
    num_epochs, epochs = here.number("epochs"), here.array("epoch_frac")
    lr = [
        warmup_cosine_lr(
            float(epoch),
            num_positions=num_epochs,
            warmup=here.number("warmup_epochs"),
            base_lr=here.number("lr_base"),
        )
        for epoch in epochs
    ]
    base = here.number("moco_m")
    momentum = [
        rising_momentum(float(epoch), num_positions=num_epochs, base_momentum=base)
        for epoch in epochs
    ]
    report.compare(here.prefix + "lr", lr, here.array("lr"))
    report.compare(here.prefix + "m", momentum, here.array("m"))


def _check_moco(case: str, here: Vectors, report: Report) -> None:
    """Derive the schedule from rates: the first is the base, milestones divide it by 10."""
    lr = here.array("lr")
    falls = lr[1:] < 0.5 * lr[:-1]
    if "v1" in case:
        milestones = tuple(float(epoch) for epoch in 1 + np.flatnonzero(falls))
        found = [
            stepped_lr(epoch, base_lr=float(lr[0]), milestones=milestones)
            for epoch in range(len(lr))
        ]
    else:
        found = [cosine(epoch / len(lr), float(lr[0]), 0.0) for epoch in range(len(lr))]
    report.compare(here.prefix + "lr", found, lr)


def _check_patchmix(here: Vectors, report: Report) -> None:
    base, final, num_epochs, per_epoch, warmup_epochs = here.array("params").tolist()
    num_steps = int(num_epochs * per_epoch)
    found = [
        swav_lr(
            step,
            num_steps=num_steps,
            warmup_steps=int(warmup_epochs * per_epoch),
            start_lr=0.0,
            base_lr=base,
            final_lr=final,
        )
        for step in range(num_steps)
    ]
    report.compare(here.prefix + "value", found, here.array("value"))


def check_byol_schedules(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/steps$"):
        here = vectors.under(case)
        num_steps = here.count("max_steps")
        base_lr = linearly_scaled_lr(here.number("base_lr"), here.count("batch_size"))
        lr, tau = [], []
        for step in here.array("steps").tolist():
            warmup = here.count("warmup_steps")
            lr.append(
                warmup_cosine_lr(step, num_positions=num_steps, warmup=warmup, base_lr=base_lr)
            )
            base = here.number("base_ema")
            tau.append(rising_momentum(step, num_positions=num_steps, base_momentum=base))
        report.compare(here.prefix + "lr", lr, here.array("lr"))
        report.compare(here.prefix + "tau", tau, here.array("tau"))


def check_simclr_schedules(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/lr$"):
        here = vectors.under(case)
        num_samples, batch = here.count("num_examples"), here.count("batch")
        scale = root_scaled_lr if here.count("sqrt_scaling") else linearly_scaled_lr
        base_lr = scale(here.number("base_lr"), batch)
        num_steps = simclr_num_steps(num_samples, epochs=here.count("epochs"), global_batch=batch)
        warmup = simclr_warmup_steps(
            num_samples, epochs=here.number("warmup_epochs"), global_batch=batch
        )
        found = [
            warmup_cosine_lr(step, num_positions=num_steps, warmup=warmup, base_lr=base_lr)
            for step in range(num_steps + 1)
        ]
        report.compare(here.prefix + "train_steps", num_steps, here.array("train_steps"))
        report.compare(here.prefix + "lr", found, here.array("lr"))
