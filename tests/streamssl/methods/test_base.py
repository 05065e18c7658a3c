"""What all methods share."""

import torch

from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.methods.base import Method, step_generator
from tests.streamssl.tiny import TinyBackbone, built


def test_draws_depend_on_seed_step_and_purpose_and_nothing_else() -> None:
    """Seed 0 step 1 must not be seed 1 step 0."""
    keys = [(0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b")]
    draws = [tuple(torch.randperm(50, generator=step_generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(draws)
    again = torch.randperm(50, generator=step_generator(*keys[0]))
    assert tuple(again.tolist()) == draws[0]


def test_methods_are_built_alike() -> None:
    """The trainer knows one way to build and one protocol."""
    for config in (SwAVConfig(num_prototypes=4), MoCoConfig()):
        method: Method = built(config, TinyBackbone(), num_views=(2,), seed=3, group=None)
        assert isinstance(method.backbone, TinyBackbone) and method.group is None
