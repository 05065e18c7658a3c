"""MoCHi: hard negative mixing for contrastive learning.

Kalantidis et al., arXiv:2010.01028. MoCo v2 in which each query also meets negatives that do not
exist: mixtures of the keys of the queue that are nearest to it, with each other and with the query.

Shape letters: B samples of this rank, G samples of the global batch, L queue, H hardest keys, S
mixtures of two keys, T mixtures of a key and the query, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum, rank, world_size
from streamssl.methods.base import Samples, step_generator
from streamssl.methods.moco import Contrast, MoCo, MoCoConfig, enqueue
from streamssl.modules.losses import at_least_float32


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCHiConfig(MoCoConfig):
    """MoCo v2 and (N, s, s') = (1024, 1024, 128) of the paper, after 15 epochs of ImageNet.

    Of the `num_hardest` keys, `num_mixed` pairs are mixed, and `num_mixed_with_query` are mixed
    with the query, which has less than half. Keys of the same sample are no negatives.
    """

    num_hardest: int = 1024
    num_mixed: int = 1024
    num_mixed_with_query: int = 128
    start_step: int = 75_075

    def __post_init__(self) -> None:
        MoCoConfig.__post_init__(self)
        if not 1 <= self.num_hardest <= self.queue.capacity:
            raise ConfigError(
                f"num_hardest={self.num_hardest}; it must be from 1 to the queue's "
                f"{self.queue.capacity} keys; the paper has 1,024 of 65,536"
            )
        for name in ("num_mixed", "num_mixed_with_query", "start_step"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 0; raise it")

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike
        group: ProcessGroup | None = None,
    ) -> "MoCHi":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return MoCHi(self, backbone, num_views=num_views, seed=seed, group=group)


@dataclass(frozen=True, slots=True)
class Draws:
    """What is mixed: places among the hardest, int64, and shares of the first part in [0, 1].

    `first`, `second` and `share` (B, S) mix two keys; `third` and `query_share` (B, T), below a
    half, a key with the query.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    third: Tensor
    query_share: Tensor

    def rows(self, place: slice, device: torch.device) -> "Draws":
        """Those of some samples."""
        parts = (self.first, self.second, self.share, self.third, self.query_share)
        return Draws(*(part[place].to(device) for part in parts))


def draw(generator: torch.Generator, num_samples: int, config: MoCHiConfig) -> Draws:
    """Draws for the global batch, (G, S) and (G, T), so that ranks share one randomness."""
    pairs, singles = config.num_mixed, config.num_mixed_with_query
    places = torch.randint(
        config.num_hardest, (num_samples, 2 * pairs + singles), generator=generator
    )
    first, second, third = places.split([pairs, pairs, singles], dim=1)
    shares = torch.rand((num_samples, pairs + singles), generator=generator)
    share, query_share = shares.split([pairs, singles], dim=1)
    return Draws(first, second, share, third, query_share / 2)


def find_hardest(cosines_BL: Tensor, num: int, excluded_BL: Tensor | None = None) -> Tensor:
    """Rows of the queue nearest to each query, (B, H), in no order; excluded ones come last."""
    if excluded_BL is not None:
        cosines_BL = cosines_BL.masked_fill(excluded_BL, -torch.inf)
    return cosines_BL.topk(num, dim=1, sorted=False).indices


def mix(one_BSD: Tensor, other_BSD: Tensor, share_BS: Tensor) -> Tensor:
    """Unit vectors along share * one + (1 - share) * other: section 4.1 and 4.2 of the paper."""
    share_BS1 = share_BS[..., None]
    return F.normalize(share_BS1 * one_BSD + (1 - share_BS1) * other_BSD, dim=2)


def mixed_info_nce(
    q_BD: Tensor,
    k_BD: Tensor,
    queue_LD: Tensor,
    mixed_BSD: Tensor,
    temperature: float,
    excluded_BL: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each query finds its key among the queue and its own mixtures: (loss, logits).

    `logits` (B, 1 + L + S) has the key in column 0. Only the queries, where they are compared,
    carry gradient. Excluded keys of the queue have no part in it.
    """
    positive_B1 = (q_BD * k_BD.detach()).sum(dim=1, keepdim=True)
    queue_BL = q_BD @ queue_LD.detach().T
    if excluded_BL is not None:
        queue_BL = queue_BL.masked_fill(excluded_BL, -torch.inf)
    mixed_BS = torch.einsum("bd,bsd->bs", q_BD, mixed_BSD.detach())
    logits = torch.cat([positive_B1, queue_BL, mixed_BS], dim=1)
    logits = at_least_float32(logits) / temperature
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, labels), logits


class MoCHi(MoCo):
    """MoCo, which also remembers from which sample each key of its queue is."""

    config: MoCHiConfig
    queue_ids: Tensor

    def __init__(
        self,
        config: MoCHiConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, backbone, num_views=num_views, seed=seed, group=group)
        nobody_L2 = torch.full((config.queue.capacity, 2), -1, dtype=torch.int64)
        self.register_buffer("queue_ids", nobody_L2)

    def _contrast(
        self, query_BD: Tensor, key_BD: Tensor, step: int, samples: Samples | None
    ) -> Contrast:
        """Section 4: MoCo's contrast, and after `start_step` with mixtures of the hardest keys."""
        ids_B2 = torch.full_like(self.queue_ids[: len(query_BD)], -1)
        if samples is not None:
            ids_B2 = samples.ids.to(self.queue_ids.device)
        is_own_BL = (ids_B2[:, None] == self.queue_ids).all(dim=2) & (ids_B2[:, :1] >= 0)
        with torch.autocast(query_BD.device.type, enabled=False):
            q_BD = F.normalize(at_least_float32(query_BD), dim=1)
            k_BD = F.normalize(at_least_float32(key_BD.detach()), dim=1)
            # A copy: backward needs the queue as it was, and the keys enter before backward.
            queue_LD = self.queue.rows.clone()
            mixed_BSD = self._mix(q_BD.detach(), queue_LD, is_own_BL, step)
            loss, logits = mixed_info_nce(
                q_BD, k_BD, queue_LD, mixed_BSD, self.config.temperature, is_own_BL
            )
        self._note(all_gather_rows(ids_B2, self.group))
        enqueue(k_BD, self.queue, step, self.group)
        return Contrast(loss, q_BD, k_BD, logits)

    @torch.no_grad()
    def _mix(self, q_BD: Tensor, queue_LD: Tensor, is_own_BL: Tensor, step: int) -> Tensor:
        """The negatives (B, S + T, D) that each query gets besides the queue; none at first."""
        num_rows, dim = q_BD.shape
        if step < self.config.start_step:
            return q_BD.new_zeros(num_rows, 0, dim)
        generator = step_generator(self.seed, step, "mochi")
        mine = slice(rank(self.group) * num_rows, (rank(self.group) + 1) * num_rows)
        draws = draw(generator, num_rows * world_size(self.group), self.config)
        draws = draws.rows(mine, q_BD.device)
        hardest_BH = find_hardest(q_BD @ queue_LD.T, self.config.num_hardest, is_own_BL)

        def keys(places: Tensor) -> Tensor:
            return queue_LD[hardest_BH.gather(1, places)]

        pairs_BSD = mix(keys(draws.first), keys(draws.second), draws.share)
        query_BTD = q_BD[:, None].expand(-1, draws.third.shape[1], -1)
        with_query_BTD = mix(query_BTD, keys(draws.third), draws.query_share)
        return torch.cat([pairs_BSD, with_query_BTD], dim=1)

    @torch.no_grad()
    def _readings(self, contrast: Contrast, step: int) -> dict[str, Tensor | float]:
        """As MoCo's; keys that were left out are not in the mean of the negatives."""
        negative_BN = contrast.logits[:, 1:].detach() * self.config.temperature
        is_left_out_BN = negative_BN.isinf()
        mine = [negative_BN.masked_fill(is_left_out_BN, 0.0).sum(), (~is_left_out_BN).sum()]
        total, count = all_reduce_sum(torch.stack(mine), self.group)
        return {**super()._readings(contrast, step), "negative_cosine": total / count}

    @torch.no_grad()
    def _note(self, ids_G2: Tensor) -> None:
        """The ids of the keys that enter the queue next."""
        slots_G = self.queue.position + torch.arange(len(ids_G2), device=ids_G2.device)
        self.queue_ids[slots_G % self.queue.capacity] = ids_G2
