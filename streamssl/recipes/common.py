"""Values shared by recipes: steps of an epoch, and a network small enough for a CPU."""

from typing import Final

from streamssl.config.parts.backbone_config import BackboneConfig

# Optimizer steps of one pass over ImageNet-1k; the papers count in epochs.
IMAGENET_STEPS_256: Final = 5005
IMAGENET_STEPS_4096: Final = 313

# A ResNet with one block a stage and a stem of stride 2: 600 images/s a core in bf16. No block
# starts as the identity, or the network would have no depth in its first steps.
SMALL_NET: Final = BackboneConfig(
    name="resnet18",
    options={"layers": (1, 1, 1, 1), "channels": (32, 64, 128, 256), "zero_init_last": False},
    stem="half",
)
