"""Selective kernels of the ResNets of SimCLR v2 (arXiv:2006.10029, section 2).

Two 3x3 convolutions have the same input. A small network weighs their outputs for each channel, by
the mean over the image. Li et al., arXiv:1903.06586, simplified.

Shape letters: N rows, C channels out, S pixels, K the channels of the small network.
"""

from torch import Tensor, nn

_MIN_CHANNELS = 32


class SelectiveKernels(nn.Module):
    """Weighted sum (N, C, S', S') of two streams of convolution, batch norm and ReLU.

    It replaces the 3x3 convolution of a residual block with its batch norm and ReLU. The small
    network is C * `ratio` channels wide, at least 32.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, ratio: float) -> None:
        super().__init__()
        middle = max(int(channels * ratio), _MIN_CHANNELS)
        self.convolution = nn.Conv2d(
            in_channels, 2 * channels, 3, stride=stride, padding=1, bias=False
        )
        self.norm = nn.BatchNorm2d(2 * channels)
        self.squeeze = nn.Conv2d(channels, middle, 1, bias=False)
        self.squeeze_norm = nn.BatchNorm2d(middle)
        self.expand = nn.Conv2d(middle, 2 * channels, 1, bias=False)
        for layer in (self.convolution, self.squeeze, self.expand):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features_NCSS: Tensor) -> Tensor:
        first, second = self.norm(self.convolution(features_NCSS)).relu().chunk(2, dim=1)
        means_NC11 = (first + second).mean(dim=(2, 3), keepdim=True)
        squeezed_NK11 = self.squeeze_norm(self.squeeze(means_NC11)).relu()
        one, other = self.expand(squeezed_NK11).chunk(2, dim=1)
        # A softmax over two is a sigmoid of their difference.
        weight_NC11 = (one - other).sigmoid()
        mixed: Tensor = first * weight_NC11 + second * (1 - weight_NC11)
        return mixed


def select_kernels(resnet: nn.Module, ratio: float) -> bool:
    """Put selective kernels into all bottlenecks of a timm ResNet; return False without any."""
    blocks = [block for block in resnet.modules() if _is_bottleneck(block)]
    for block in blocks:
        old = block.conv2
        assert isinstance(old, nn.Conv2d)
        block.conv2 = SelectiveKernels(
            old.in_channels, old.out_channels, stride=old.stride[0], ratio=ratio
        )
        block.bn2, block.act2 = nn.Identity(), nn.Identity()
    return bool(blocks)


def _is_bottleneck(block: nn.Module) -> bool:
    names = {name for name, _ in block.named_children()}
    return {"conv1", "bn1", "conv2", "bn2", "act2", "conv3", "bn3"} <= names
