"""What several recipes share: how the papers count, and a net that is small enough for a CPU."""

from typing import Final

from streamssl.config.parts.backbone_config import BackboneConfig

# Optimizer steps of one pass over ImageNet-1k, in which the papers count.
IMAGENET_STEPS_256: Final = 5005
IMAGENET_STEPS_4096: Final = 313

# A residual net with one block a stage that begins at half size: 600 images/s a core in bf16.
# Blocks count from the first step: where each began as the identity, four would be no net at all.
SMALL_NET: Final = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "zero_init_last": False},
    stem="half",
)
