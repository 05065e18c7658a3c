"""Blocks that are computed again give the same bits, and change running statistics once."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.execution.recomputation import check_blocks, find_blocks
from streamssl.modules.backbones import build_backbone
from streamssl.training.backbone_check import check_backbone
from tests.gloo_ranks import with_ranks
from tests.streamssl.execution.test_micro_batches import PLAIN
from tests.streamssl.training.test_learner import build, learn
from tests.tinyrun import BACKBONE, tiny_moco, tiny_swav

DROPPING = BackboneConfig(
    name="vit_tiny_patch16_224",
    options={"depth": 3, "embed_dim": 24, "num_heads": 2, "drop_path_rate": 0.5},
)
CONFIGS = {
    "resnet": tiny_swav(),
    "vit": tiny_swav(backbone=DROPPING),
    "momentum copy": tiny_moco(),
    "bf16": tiny_swav(precision="bf16"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputed_blocks_give_the_same_bits(name: str) -> None:
    """Weights, momenta, batch norm: drop path must draw the same numbers the second time."""
    plain, again = build(CONFIGS[name]), build(replace(CONFIGS[name], recompute=True))
    passes = []
    block = find_blocks(again.train_state.method.backbone)[0]
    layer = next(part for part in block.modules() if isinstance(part, nn.Linear | nn.Conv2d))
    layer.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    learn(None, plain), learn(None, again)
    assert again.digest() == plain.digest()
    num_groups = len(CONFIGS[name].crops.groups) if name != "momentum copy" else 1
    assert sum(passes) == 2 * num_groups * plain.step  # else nothing would be spared


def test_on_ranks_recomputed_blocks_give_the_same_bits() -> None:
    """The second pass exchanges batch norm statistics between gradients of other layers."""
    plain, again = (
        [build(tiny_swav(backbone=PLAIN, recompute=recompute)) for _ in range(2)]
        for recompute in (False, True)
    )
    with_ranks(learn, 2, plain, [3] * 2), with_ranks(learn, 2, again, [3] * 2)
    assert {learner.digest() for learner in again} == {learner.digest() for learner in plain}


@pytest.mark.parametrize(
    ("name", "kinds", "num"),
    [
        ("resnet50", {"Bottleneck"}, 16),
        ("convnext_tiny", {"ConvNeXtBlock"}, 18),
        ("regnety_002", {"Bottleneck"}, 13),
        ("vit_small_patch16_224", {"Block"}, 12),
        ("swin_tiny_patch4_window7_224", {"SwinTransformerBlock"}, 12),
        ("densenet121", {"DenseBlock"}, 4),
    ],
)
def test_blocks_of_networks_are_found(name: str, kinds: set[str], num: int) -> None:
    """A stage as one block would need the memory of all its blocks."""
    with torch.device("meta"):
        blocks = find_blocks(build_backbone(BackboneConfig(name=name), 224))
    assert ({type(block).__name__ for block in blocks}, len(blocks)) == (kinds, num)


class Overwriting(nn.Module):
    """A block whose activation overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(nn.functional.silu(x, inplace=True))


def test_networks_that_cannot_be_computed_again_are_refused() -> None:
    """A block would get other numbers the second time, and no reading would show it."""
    with pytest.raises(
        ConfigError, match=r"'odd', whose Overwriting overwrites its input.*--micro"
    ):
        check_blocks(nn.Sequential(Overwriting(), Overwriting()), "odd", torch.ones(2, 3, 4, 4))
    one_block = replace(DROPPING, options={**DROPPING.options, "depth": 1})
    config = tiny_moco(backbone=one_block, recompute=True)
    with pytest.raises(
        ConfigError, match="patch16_224', which has no blocks that occur twice; leave out --rec"
    ):
        check_backbone(config, fresh=True)
    check_backbone(tiny_swav(backbone=BACKBONE, recompute=True), fresh=True)
