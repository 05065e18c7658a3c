"""LARC and the three forms of LARS: recorded gradients in, parameters and momenta out."""

from collections.abc import Callable, Iterable

import numpy as np
from torch import nn
from torch.optim import Optimizer

from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import LARC, LARS, build_optimizer
from tests.golden_checks.vectors import Report, Vectors

Parameters = dict[str, nn.Parameter]


def check_larc(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"(.+)/lr$"):
        here = vectors.under(case)

        def build(parameters: Parameters, here: Vectors = here) -> Optimizer:
            return LARC(
                parameters.values(),
                0.0,
                momentum=here.number("momentum"),
                weight_decay=here.number("weight_decay"),
                trust_coefficient=here.number("trust_coefficient"),
                clip=bool(here.count("clip", 0)),
            )

        _replay(here, here, report, build)


def check_lars_mocov3(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"(.+)/lr$"):
        here = vectors.under(case)
        config = OptimConfig(
            name="lars",
            weight_decay=here.number("weight_decay"),
            momentum=here.number("momentum"),
            trust_coefficient=here.number("trust_coefficient"),
        )
        _replay(
            here, here, report, lambda parameters, c=config: build_optimizer(c, parameters.values())
        )


def check_lars_byol(vectors: Vectors, report: Report) -> None:
    def is_spared(name: str) -> bool:
        module, _, leaf = name.rpartition(".")
        return leaf == "b" or "norm" in module

    def build(parameters: Parameters) -> Optimizer:
        return LARS(
            _groups(parameters, vectors.number("weight_decay"), is_spared),
            0.0,
            momentum=vectors.number("momentum"),
            trust_coefficient=vectors.number("eta"),
        )

    _replay(vectors, vectors, report, build)


def check_lars_simclr(vectors: Vectors, report: Report) -> None:
    spared = ("batch_normalization", "bias", "head_supervised")
    for case in vectors.match(r"([^/]+)/[^/]+/after0"):

        def build(parameters: Parameters, case: str = case) -> Optimizer:
            weight_decay = vectors.number("weight_decay")
            is_spared: Callable[[str], bool] = lambda n: any(part in n for part in spared)  # noqa: E731
            return LARS(
                _groups(parameters, weight_decay, is_spared),
                0.0,
                momentum=vectors.number("momentum"),
                trust_coefficient=vectors.number("eeta"),
                momentum_form="popular" if "popular" in case else "classic",
                nesterov="nesterov" in case,
            )

        _replay(vectors, vectors.under(case), report, build)


def _groups(
    parameters: Parameters, weight_decay: float, is_spared: Callable[[str], bool]
) -> Iterable[dict[str, object]]:
    spared = [p for name, p in parameters.items() if is_spared(name)]
    others = [p for name, p in parameters.items() if not is_spared(name)]
    yield {"params": others, "weight_decay": weight_decay}
    yield {"params": spared, "weight_decay": 0.0, "adapt": False}


def _replay(
    given: Vectors, expected: Vectors, report: Report, build: Callable[[Parameters], Optimizer]
) -> None:
    names = given.match(r"([^/]+)/init$")
    parameters = {name: nn.Parameter(given.tensor(f"{name}/init")) for name in names}
    optimizer = build(parameters)
    for step, lr in enumerate(np.atleast_1d(given.array("lr"))):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name, parameter in parameters.items():
            gradient = f"{name}/grad{step}"
            parameter.grad = given.tensor(gradient) if gradient in given else None
        optimizer.step()
        for name, parameter in parameters.items():
            after, momentum = f"{name}/after{step}", f"{name}/mom{step}"
            report.compare(expected.prefix + after, parameter, expected.array(after))
            if momentum in expected:
                found = optimizer.state[parameter]["momentum_buffer"]
                report.compare(expected.prefix + momentum, found, expected.array(momentum))
