"""PatchMix: inter-instance similarity modelling with images made of patches of several images.

Shen et al., arXiv:2306.12243. In a mixed image each group of patches comes from another image. Its
query must find the keys of all these sources, and the keys of other mixed images in proportion to
the number of shared sources. Keys come from a momentum copy, or from the encoder itself.

Images are mixed around the ring of the global batch: image g has patches of images g, g + 1, ...,
g + m - 1 of all ranks. So a mixture does not depend on the number of ranks; in the authors' code
each rank has its own ring.

Shape letters: B samples of this rank, G = W * B of all ranks, C crops, T patches of an image, m
mixed images, D feature, S pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.distributed.collectives import all_gather_rows, rank, world_size
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput, step_generator
from streamssl.modules.heads import moco_v3_head
from streamssl.modules.losses import at_least_float32, soft_info_nce
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.schedules import momentum_at


@dataclass(frozen=True, slots=True)
class MixingRing:
    """Order in which images are mixed, as columns of the targets.

    This rank's first image is at `offset` of a ring of `length` columns that begins at column
    `start`; there are `num_columns` keys in all.
    """

    offset: int
    length: int
    num_columns: int
    start: int = 0

    def columns(self, num_rows: int, first: int, last: int) -> Tensor:
        """Return columns (num_rows, last - first) of images at these distances from each row."""
        places = self.offset + torch.arange(num_rows)[:, None] + torch.arange(first, last)
        return self.start + places % self.length


def mix_patches(
    images_BCSS: Tensor, order_T: Tensor, *, patch_size: int, num_mixed: int, following: Tensor
) -> Tensor:
    """Return images with patches of `num_mixed` consecutive images.

    `order_T` is a permutation of the patches, the same for all images. In it the j-th group of
    T // m patches comes from image g + j; other patches stay, and all keep their places.
    `following` are the m - 1 images after the last one. Section 3.2 of the paper.
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


def identity_targets(num_rows: int, ring: MixingRing, *, smoothing: float) -> Tensor:
    """Return soft targets (B, G) of images that are not mixed."""
    return _spread(ring.columns(num_rows, 0, 1), torch.ones(1), ring.num_columns, smoothing)


def source_targets(num_rows: int, ring: MixingRing, *, num_mixed: int, smoothing: float) -> Tensor:
    """Return soft targets (B, G) from mixed images to whole ones: equal shares of all sources."""
    weights = torch.full((num_mixed,), 1 / num_mixed)
    return _spread(ring.columns(num_rows, 0, num_mixed), weights, ring.num_columns, smoothing)


def mixture_targets(num_rows: int, ring: MixingRing, *, num_mixed: int, smoothing: float) -> Tensor:
    """Return soft targets (B, G) from mixed images to mixed ones, by shared sources."""
    distances = torch.arange(1 - num_mixed, num_mixed)
    weights = (num_mixed - distances.abs()) / num_mixed**2
    columns = ring.columns(num_rows, 1 - num_mixed, num_mixed)
    return _spread(columns, weights, ring.num_columns, smoothing)


def _spread(columns: Tensor, weights: Tensor, num_columns: int, smoothing: float) -> Tensor:
    """Return targets with `weights` at `columns`, smoothed over all columns."""
    targets = torch.full((len(columns), num_columns), smoothing / num_columns)
    return targets.scatter_add_(1, columns, ((1 - smoothing) * weights).expand_as(columns))


@dataclass(frozen=True, slots=True)
class MixingTargets:
    """Soft targets (B, G) for queries of whole images, and of mixed ones by kind of key."""

    identity: Tensor
    source: Tensor
    mixture: Tensor


@dataclass(frozen=True, slots=True)
class EncodedViews:
    """Outputs of the encoders (B, D) of any norm; crops (C * B, D) crop-major, or None.

    `q1` and `k1` are of view 1, `k2` of view 2, `mixed_k1` of the mixed view 1 and `mixed_q2` of
    the mixed view 2.
    """

    q1: Tensor
    k1: Tensor
    k2: Tensor
    mixed_k1: Tensor
    mixed_q2: Tensor
    crops_q: Tensor | None = None
    crops_mixed_q: Tensor | None = None


def patchmix_losses(
    encoded: EncodedViews, targets: MixingTargets, temperature: float, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """Return the parts of the loss, to be added: section 3.3 of the paper, eq. 4 to 8."""
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


class PatchMix(Method):
    """Encoder (backbone and projector), predictor, and perhaps a momentum copy of the encoder."""

    def __init__(self, config: PatchMixConfig, context: BuildContext) -> None:
        super().__init__(context)
        num_views = context.num_views
        two_first = num_views[0] == 2 or num_views[:2] == (1, 1)
        if not two_first:
            raise ConfigError(
                f"num_views={num_views}; PatchMix takes two large views first, as one group "
                "of two or two groups of one, and then any number of small ones; change the views"
            )
        self.config, self.seed, self.num_steps = config, context.seed, context.num_steps
        self.num_large_groups = 1 if num_views[0] == 2 else 2
        self.projector = moco_v3_head(
            context.width, config.hidden_dim, config.dim, num_layers=3, ends_in_norm=True
        )
        self.predictor = moco_v3_head(
            config.dim, config.hidden_dim, config.dim, num_layers=2, ends_in_norm=True
        )
        self._known_targets: tuple[Any, MixingTargets] | None = None
        self.key_encoder: MomentumCopy | None = None
        if config.keys == "momentum":
            self.key_encoder = MomentumCopy(self._encoder())
            # Keys use all layers, as in the authors' code: only queries drop paths.
            for module in self.key_encoder.modules():
                if hasattr(module, "drop_prob"):
                    module.drop_prob = 0.0  # type: ignore[assignment]

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of a step; the momentum copy follows the step before first."""
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
        # Loss of equally similar keys: the parts are weighted, and crops have two of them.
        plateau = math.log(targets.identity.shape[1]) * (6 if crops else 2)
        return StepOutput(torch.stack(list(losses.values())).sum(), readings, features, plateau)

    def _targets(self, num_samples: int, device: torch.device) -> MixingTargets:
        """Return the targets, which are the same in every step of these ranks."""
        config, num_all = self.config, num_samples * world_size(self.group)
        if num_all < 2 * config.num_mixed - 1:
            raise ConfigError(
                f"num_mixed={config.num_mixed} with a global batch of {num_all}; mixed images are "
                f"compared over {2 * config.num_mixed - 1}; raise the batch or mix fewer"
            )
        ring = MixingRing(rank(self.group) * num_samples, num_all, num_all)
        mixed = {"num_mixed": config.num_mixed, "smoothing": config.smoothing}
        key = (ring, num_samples, device)
        if self._known_targets is None or self._known_targets[0] != key:
            targets = MixingTargets(
                identity_targets(num_samples, ring, smoothing=config.identity_smoothing).to(device),
                source_targets(num_samples, ring, **mixed).to(device),  # type: ignore[arg-type]
                mixture_targets(num_samples, ring, **mixed).to(device),  # type: ignore[arg-type]
            )
            self._known_targets = key, targets
        return self._known_targets[1]

    def _update_keys(self, step: int) -> float | None:
        """Move the copy and return the momentum of this step.

        It follows the true position in the run. In the authors' code a shadowed variable keeps it
        at the position of the second step of each epoch.
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

    def _encode(
        self, view1: Tensor, view2: Tensor, crops: Sequence[Tensor], step: int
    ) -> EncodedViews:
        z1 = self.projector(self.backbone(view1))
        small_q = small_mixed_q = None
        if crops:
            small = [
                self._query(torch.cat(same))
                for same in (list(crops), [self._mix(c, step, f"{i}") for i, c in enumerate(crops)])
            ]
            small_q, small_mixed_q = small
        return EncodedViews(
            q1=self.predictor(z1),
            # Without a copy, keys are outputs of the encoder, without gradient.
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
        """Return mixed images; the last ones take patches of the next ranks' first images."""
        config, num_samples = self.config, len(images)
        num_patches = (images.shape[2] // config.patch_size) ** 2
        generator = step_generator(self.seed, step, f"patchmix {view}")
        order_T = torch.randperm(num_patches, generator=generator)
        order_T = order_T.to(images.device, non_blocking=True)
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
