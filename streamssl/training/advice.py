"""Advice: what to change when a reading has crossed its limit, from the settings of the run.

Each option that is named exists for the method of the run and works as it is written, with a new
`--out`: a run continues only with the settings it was started with. Values that are already where
the advice would lead are not named.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Final

from streamssl.config.methods.deepcluster_config import DeepClusterConfig
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.method_config import MethodConfig
from streamssl.config.parts.size_rules import (
    REMEMBERED_PER_PROTOTYPE,
    SHARP_EPSILON,
    max_prototypes,
)
from streamssl.config.run_config import RunConfig

# Below these rates weights hardly move: a lower one is no remedy.
_LOW_RATES: Final = {"sgd": 1e-4, "adamw": 1e-6, "lars": 1e-3, "larc": 1e-3}
_SHARP_DISTANCE = 0.2  # SpCL: neighbours that are nearer than this are few already
_LOOK: Final = (
    "if the images themselves are alike, such as masks, name others with --data or --image-member"
)


def advice(config: RunConfig) -> Mapping[str, str]:
    """Return a sentence of remedies for each reading that has a limit."""
    prototypes, sizes, rate = _prototypes(config), _sizes(config), _rate(config)
    epsilon, momentum, temperature = _epsilon(config), _momentum(config), _temperature(config)
    crops = "crops that show more of their image"
    slower = (momentum, rate, sizes)
    found = {
        "feature_std": slower,
        "effective_rank": slower,
        "loss_over_plateau": (prototypes, sizes, epsilon, momentum, temperature, rate, crops),
        "codes_certainty": (epsilon, prototypes, sizes, rate),
        "assignments_used": (epsilon, rate, prototypes, sizes),
    }
    return {reading: _sentence(remedies) for reading, remedies in found.items()}


def _sentence(remedies: tuple[str, ...]) -> str:
    known = [remedy for remedy in remedies if remedy]
    if not known:
        return _LOOK
    start = f"give {', or '.join(known)}, with a new --out, since a run keeps its settings"
    return f"{start}; {_LOOK}"


def _sizes(config: RunConfig) -> str:
    """Return the option that derives all sizes, unless the run has it."""
    has_sizes = type(config.method).sized is not MethodConfig.sized
    return "--sizes auto" if has_sizes and not config.origins else ""


def _prototypes(config: RunConfig) -> str:
    """Return fewer prototypes, as many as batch and queue, or the memory, have rows for."""
    method = config.method
    if isinstance(method, SwAVConfig):
        queued = 0 if method.queue is None else method.queue.capacity
        most = max_prototypes(config.stream.batch_size + queued, None)
        return _fewer((method.num_prototypes,), most)
    if isinstance(method, DeepClusterConfig | SeLaConfig):
        return _fewer(method.num_prototypes, method.memory // REMEMBERED_PER_PROTOTYPE)
    return ""


def _fewer(now: tuple[int, ...], most: int) -> str:
    wanted = [max(2, min(number // 2, most)) for number in now]
    if all(new >= old for new, old in zip(wanted, now, strict=True)):
        return ""
    new, old = (" ".join(map(str, numbers)) for numbers in (wanted, now))
    return f"--method.num-prototypes {new} instead of {old}"


def _epsilon(config: RunConfig) -> str:
    """Return a lower epsilon, unless it is low already."""
    method = config.method
    if isinstance(method, SwAVConfig) and method.epsilon > SHARP_EPSILON:
        return _instead("method.epsilon", SHARP_EPSILON, method.epsilon)
    if isinstance(method, SpCLConfig) and method.epsilon > _SHARP_DISTANCE:
        published: float = _published(method, "epsilon")
        lower = published if method.epsilon > published else method.epsilon / 2
        if lower > method.epsilon_gap:
            return _instead("method.epsilon", lower, method.epsilon)
    return ""


def _momentum(config: RunConfig) -> str:
    """Return a slower copy of the network, if a copy makes targets and is faster than published."""
    method = config.method
    if isinstance(method, SpCLConfig):  # its momentum is that of a memory
        return ""
    if isinstance(method, PatchMixConfig) and method.keys == "own":
        return ""
    return _towards_published(method, "momentum", up=True)


def _temperature(config: RunConfig) -> str:
    return _towards_published(config.method, "temperature", up=False)


def _towards_published(method: MethodConfig, name: str, *, up: bool) -> str:
    """Return the published value of a setting, if that is higher, or lower, than the run's."""
    now = getattr(method, name, None)
    if now is None:
        return ""
    published: float = _published(method, name)
    is_beyond = now < published if up else now > published
    return _instead(f"method.{name}", published, now) if is_beyond else ""


def _published(method: MethodConfig, name: str) -> float:
    found = next(one.default for one in fields(method) if one.name == name)
    assert found is not MISSING
    return float(found)


def _rate(config: RunConfig) -> str:
    """Return a lower learning rate; a higher one if the weights hardly move."""
    now = config.optim.base_lr
    if now > _LOW_RATES[config.optim.name]:
        return _instead("optim.base-lr", now / 5, now)
    return _instead("optim.base-lr", 100 * _LOW_RATES[config.optim.name], now)


def _instead(name: str, wanted: float, now: float) -> str:
    return f"--{name} {wanted:.3g} instead of {now:g}"
