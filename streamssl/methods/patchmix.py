"""PatchMix: inter-instance similarity modelling with images made of patches of several images.

Shen et al., arXiv:2310.12094. In a mixed image every group of patches comes from another image; its
query must find the keys of all of them, and the keys of other mixed images by how many sources they
share. Keys come from a momentum copy, or from the encoder itself.

The images are mixed around the ring of the global batch: image g has patches of images g, g + 1,
..., g + m - 1 of all ranks. So a mixture does not depend on how many ranks there are; upstream each
rank has a ring of its own.

Shape letters: B samples of this rank, G = W * B of all ranks, C crops, T patches of an image, m
mixed images, D feature, S pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, rank, world_size
from streamssl.methods.base import Samples, StepOutput, step_generator
from streamssl.modules.heads import moco_v3_head
from streamssl.modules.losses import at_least_float32, soft_info_nce
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import MomentumKind, momentum_at


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchMixConfig:
    """The settings of the paper's code for ViT-S and ViT-B.

    `patch_size` in pixels must divide the side of every view. `keys` come from a momentum copy, or
    from the encoder's "own" outputs, as for ViT-T. `identity_smoothing` smooths the targets of
    images that are not mixed: 0.1 by an oversight upstream, with which the published numbers were
    made.
    """

    patch_size: int = 16
    num_mixed: int = 2
    dim: int = 256
    hidden_dim: int = 4096
    temperature: float = 0.2
    keys: Literal["momentum", "own"] = "momentum"
    momentum: float = 0.996
    momentum_kind: MomentumKind = "cosine"
    smoothing: float = 0.0
    identity_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("patch_size", "num_mixed", "dim", "hidden_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the paper has 0.2"
            )
        if not 0 <= self.momentum <= 1:
            raise ConfigError(
                f"momentum={self.momentum}; it must lie in [0, 1]; the paper has 0.996"
            )
        for name in ("smoothing", "identity_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must lie in [0, 1)")

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        num_steps: int = 0,
        group: ProcessGroup | None = None,
    ) -> "PatchMix":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return PatchMix(
            self, backbone, num_views=num_views, seed=seed, num_steps=num_steps, group=group
        )


@dataclass(frozen=True, slots=True)
class Ring:
    """Which images are mixed with each other, as columns of the targets.

    This rank's first image is at `offset` of a ring of `length` columns from `start` on, of
    `num_columns` keys in all.
    """

    offset: int
    length: int
    num_columns: int
    start: int = 0

    def columns(self, num_rows: int, first: int, last: int) -> Tensor:
        """Columns (num_rows, last - first) of the images at these distances from each row's own."""
        places = self.offset + torch.arange(num_rows)[:, None] + torch.arange(first, last)
        return self.start + places % self.length


def mix_patches(
    images_BCSS: Tensor, order_T: Tensor, *, patch_size: int, num_mixed: int, following: Tensor
) -> Tensor:
    """Images whose patches are taken in turn from `num_mixed` images that follow each other.

    Patches are shuffled by `order_T`, the same for all; of each T // m that follow, the j-th group
    comes from image g + j; the rest, and the places of all, stay. `following` are the m - 1 images
    after the last, the first ones where the ring closes. Section 3.2 of the paper.
    """
    if num_mixed == 1:
        return images_BCSS
    _, channels, height, width = images_BCSS.shape
    if height % patch_size or width % patch_size:
        raise ConfigError(
            f"patch_size={patch_size} with views of {height} x {width} pixels; it must divide "
            "them; choose another --method.patch-size or other view sizes"
        )
    size = (height, width)
    patches_BPT = F.unfold(torch.cat([images_BCSS, following]), patch_size, stride=patch_size)
    group = patches_BPT.shape[2] // num_mixed
    num = len(images_BCSS)
    mixed_BPT = patches_BPT[:num].clone()
    for j in range(1, num_mixed):
        places = order_T[j * group : (j + 1) * group]
        mixed_BPT[:, :, places] = patches_BPT[j : j + num][:, :, places]
    mixed: Tensor = F.fold(mixed_BPT, size, patch_size, stride=patch_size)
    assert mixed.shape[1] == channels
    return mixed.contiguous(memory_format=torch.channels_last)


def identity_targets(num_rows: int, ring: Ring, *, smoothing: float) -> Tensor:
    """Soft targets (B, G) of images that are not mixed."""
    return _spread(ring.columns(num_rows, 0, 1), torch.ones(1), ring.num_columns, smoothing)


def source_targets(num_rows: int, ring: Ring, *, num_mixed: int, smoothing: float) -> Tensor:
    """Soft targets (B, G) from mixed images to whole ones: an equal share for each source."""
    weights = torch.full((num_mixed,), 1 / num_mixed)
    return _spread(ring.columns(num_rows, 0, num_mixed), weights, ring.num_columns, smoothing)


def mixture_targets(num_rows: int, ring: Ring, *, num_mixed: int, smoothing: float) -> Tensor:
    """Soft targets (B, G) from mixed images to mixed ones: by how many sources they share."""
    distances = torch.arange(1 - num_mixed, num_mixed)
    weights = (num_mixed - distances.abs()) / num_mixed**2
    columns = ring.columns(num_rows, 1 - num_mixed, num_mixed)
    return _spread(columns, weights, ring.num_columns, smoothing)


def _spread(columns: Tensor, weights: Tensor, num_columns: int, smoothing: float) -> Tensor:
    """Weights at their columns, less `smoothing` of them, which all columns share equally."""
    targets = torch.full((len(columns), num_columns), smoothing / num_columns)
    return targets.scatter_add_(1, columns, ((1 - smoothing) * weights).expand_as(columns))


@dataclass(frozen=True, slots=True)
class Targets:
    """Soft targets (B, G) for queries of whole images, and of mixed ones by kind of key."""

    identity: Tensor
    source: Tensor
    mixture: Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """Outputs of the encoders (B, D), any norm; crops (C * B, D) crop-major, or None.

    `q1` and `k1` are of view 1, `k2` of view 2, `mixed_k1` of view 1 mixed and `mixed_q2` of view 2
    mixed.
    """

    q1: Tensor
    k1: Tensor
    k2: Tensor
    mixed_k1: Tensor
    mixed_q2: Tensor
    crops_q: Tensor | None = None
    crops_mixed_q: Tensor | None = None


def patchmix_losses(
    encoded: Encoded, targets: Targets, temperature: float, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """The parts of the loss, to be added: section 3.3 of the paper, eq. 4 to 8."""
    with torch.no_grad():
        k1, k2, mixed_k1 = (
            all_gather_rows(F.normalize(at_least_float32(key), dim=1), group)
            for key in (encoded.k1, encoded.k2, encoded.mixed_k1)
        )

    def find(query_BD: Tensor, keys_GD: Tensor, targets_BG: Tensor) -> Tensor:
        q_BD = F.normalize(at_least_float32(query_BD), dim=1)
        return soft_info_nce(q_BD, keys_GD, targets_BG, temperature)

    losses = {
        "source": find(encoded.q1, k2, targets.identity),
        "mix": find(encoded.mixed_q2, k1, targets.source) / 2,
        "mix_mix": find(encoded.mixed_q2, mixed_k1, targets.mixture) / 2,
    }
    for name, queries, wanted in (
        ("crops", encoded.crops_q, targets.identity),
        ("crops_mix", encoded.crops_mixed_q, targets.source),
    ):
        if queries is not None:
            parts = [
                find(query, keys, wanted)
                for query in queries.split(len(encoded.q1))
                for keys in (k1, k2)
            ]
            losses[name] = 2 * torch.stack(parts).mean()
    return losses


class PatchMix(nn.Module):
    """Encoder (backbone and projector), predictor, and the encoder's momentum copy if asked for."""

    def __init__(
        self,
        config: PatchMixConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        num_steps: int = 0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        two_first = num_views[0] == 2 or list(num_views[:2]) == [1, 1]
        if not two_first:
            raise ConfigError(
                f"num_views={tuple(num_views)}; PatchMix takes two large views first, as one group "
                "of two or two groups of one, and then any number of small ones; change the views"
            )
        self.config, self.seed, self.num_steps, self.group = config, seed, num_steps, group
        self.num_large_groups = 1 if num_views[0] == 2 else 2
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.projector = moco_v3_head(
            width, config.hidden_dim, config.dim, num_layers=3, ends_in_norm=True
        )
        self.predictor = moco_v3_head(
            config.dim, config.hidden_dim, config.dim, num_layers=2, ends_in_norm=True
        )
        self.key_encoder: MomentumCopy | None = None
        if config.keys == "momentum":
            self.key_encoder = MomentumCopy(self._encoder())
            # Keys are made by all layers, as upstream: only queries drop paths.
            for module in self.key_encoder.modules():
                if hasattr(module, "drop_prob"):
                    module.drop_prob = 0.0  # type: ignore[assignment]

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def loss(
        self,
        views: Sequence[Tensor],
        *,
        step: int,
        samples: Samples | None = None,  # noqa: ARG002 - only some methods ask who is who
    ) -> StepOutput:
        """One step; the momentum copy moves first, by what the step before has learned."""
        view1, view2 = views[0].chunk(2) if self.num_large_groups == 1 else views[:2]
        num_samples = len(view1)
        targets = self._targets(num_samples, view1.device)
        momentum = self._update_keys(step)
        crops = [
            crop for group in views[self.num_large_groups :] for crop in group.split(num_samples)
        ]
        encoded = self._encode(view1, view2, crops, step)
        with torch.autocast(view1.device.type, enabled=False):
            losses = patchmix_losses(encoded, targets, self.config.temperature, self.group)
            features = F.normalize(at_least_float32(encoded.q1), dim=1).detach()
        readings: dict[str, Tensor | float] = {
            f"loss_{name}": value.detach() for name, value in losses.items()
        }
        if momentum is not None:
            readings["key_momentum"] = momentum
        # All keys are alike to a query; parts of the loss are weighted, and crops have two of them.
        plateau = math.log(targets.identity.shape[1]) * (6 if crops else 2)
        return StepOutput(torch.stack(list(losses.values())).sum(), readings, features, plateau)

    def _targets(self, num_samples: int, device: torch.device) -> Targets:
        config, num_all = self.config, num_samples * world_size(self.group)
        if num_all < 2 * config.num_mixed - 1:
            raise ConfigError(
                f"num_mixed={config.num_mixed} with a global batch of {num_all}; mixed images are "
                f"compared over {2 * config.num_mixed - 1}; raise the batch or mix fewer"
            )
        ring = Ring(rank(self.group) * num_samples, num_all, num_all)
        mixed = {"num_mixed": config.num_mixed, "smoothing": config.smoothing}
        return Targets(
            identity_targets(num_samples, ring, smoothing=config.identity_smoothing).to(device),
            source_targets(num_samples, ring, **mixed).to(device),  # type: ignore[arg-type]
            mixture_targets(num_samples, ring, **mixed).to(device),  # type: ignore[arg-type]
        )

    def _update_keys(self, step: int) -> float | None:
        """The momentum of this step, once the copy has moved by it.

        By the true position in the run: upstream a shadowed index leaves it at the position of the
        second step of each epoch.
        """
        if self.key_encoder is None:
            return None
        momentum = momentum_at(
            self.config.momentum_kind,
            step,
            num_steps=self.num_steps,
            base_momentum=self.config.momentum,
        )
        self.key_encoder.update(self._encoder(), momentum)
        return momentum

    def _encode(self, view1: Tensor, view2: Tensor, crops: Sequence[Tensor], step: int) -> Encoded:
        z1 = self.projector(self.backbone(view1))
        small_q = small_mixed_q = None
        if crops:
            small = [
                self._query(torch.cat(same))
                for same in (list(crops), [self._mix(c, step, f"{i}") for i, c in enumerate(crops)])
            ]
            small_q, small_mixed_q = small
        return Encoded(
            q1=self.predictor(z1),
            # Without a copy the keys are the encoder's own, without gradient.
            k1=z1.detach() if self.key_encoder is None else self.key_encoder(view1),
            k2=self._key(view2),
            mixed_k1=self._key(self._mix(view1, step, "view 1")),
            mixed_q2=self._query(self._mix(view2, step, "view 2")),
            crops_q=small_q,
            crops_mixed_q=small_mixed_q,
        )

    def _query(self, images: Tensor) -> Tensor:
        query: Tensor = self.predictor(self.projector(self.backbone(images)))
        return query

    @torch.no_grad()
    def _key(self, images: Tensor) -> Tensor:
        encoder = self._encoder() if self.key_encoder is None else self.key_encoder
        key: Tensor = encoder(images)
        return key

    @torch.no_grad()
    def _mix(self, images: Tensor, step: int, view: str) -> Tensor:
        """Mixed images; the next ranks' first images close the gap at the end of this rank's."""
        config, num_samples = self.config, len(images)
        num_patches = (images.shape[2] // config.patch_size) ** 2
        generator = step_generator(self.seed, step, f"patchmix {view}")
        order_T = torch.randperm(num_patches, generator=generator).to(images.device)
        num_following = config.num_mixed - 1
        firsts = all_gather_rows(images[: min(num_following, num_samples)], self.group)
        begin = (rank(self.group) + 1) * min(num_following, num_samples)
        places = torch.arange(begin, begin + num_following, device=images.device) % len(firsts)
        return mix_patches(
            images,
            order_T,
            patch_size=config.patch_size,
            num_mixed=config.num_mixed,
            following=firsts[places],
        )

    def after_backward(self, step: int) -> None:
        """Nothing."""

    def after_step(self, step: int) -> None:
        """Nothing: the momentum copy moves before the next step."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone, projector and predictor; the momentum copy is not trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
