"""MoCHi: hard negative mixing for contrastive learning.

Kalantidis et al., arXiv:2010.01028. MoCo v2 with synthetic negatives for each query:
mixtures of the nearest keys of the queue with each other and with the query.

Shape letters: B samples of this rank, G samples of the global batch, L queue, H hardest keys, S
mixtures of two keys, T mixtures of a key and the query, D feature.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from streamssl.config.methods.mochi_config import MoCHiConfig
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum, rank, world_size
from streamssl.methods.base import BuildContext, SampleInfo, step_generator
from streamssl.methods.moco import ContrastOutput, MoCo, enqueue
from streamssl.modules.losses import at_least_float32


@dataclass(frozen=True, slots=True)
class MixingDraws:
    """Random choices of a step: indices among the hardest keys (int64), and shares in [0, 1].

    `first`, `second` and `share` (B, S) mix two keys; `third` and `query_share` (B, T), below a
    half, mix a key with the query. Shares are those of the first key or of the query.
    """

    first: Tensor
    second: Tensor
    share: Tensor
    third: Tensor
    query_share: Tensor

    def rows(self, place: slice, device: torch.device) -> "MixingDraws":
        """Return the choices of a range of samples."""
        parts = (self.first, self.second, self.share, self.third, self.query_share)
        return MixingDraws(*(part[place].to(device, non_blocking=True) for part in parts))


def draw(generator: torch.Generator, num_samples: int, config: MoCHiConfig) -> MixingDraws:
    """Draw for the global batch, (G, S) and (G, T), so that the result fits any number of ranks."""
    pairs, singles = config.num_mixed, config.num_mixed_with_query
    places = torch.randint(
        config.num_hardest, (num_samples, 2 * pairs + singles), generator=generator
    )
    first, second, third = places.split([pairs, pairs, singles], dim=1)
    shares = torch.rand((num_samples, pairs + singles), generator=generator)
    share, query_share = shares.split([pairs, singles], dim=1)
    return MixingDraws(first, second, share, third, query_share / 2)


def find_hardest(cosines_BL: Tensor, num: int, excluded_BL: Tensor | None = None) -> Tensor:
    """Return the queue rows nearest to each query, (B, H), unordered; excluded ones come last."""
    if excluded_BL is not None:
        cosines_BL = cosines_BL.masked_fill(excluded_BL, -torch.inf)
    return cosines_BL.topk(num, dim=1, sorted=False).indices


def mix(one_BSD: Tensor, other_BSD: Tensor, share_BS: Tensor) -> Tensor:
    """Return unit vectors along share * one + (1 - share) * other: sections 4.1 and 4.2."""
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
    """Return (loss, logits) of queries that find their keys among queue and mixtures.

    `logits` (B, 1 + L + S) have the key in column 0. Only the queries that are compared carry
    gradient. Excluded keys of the queue do not count.
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
    """MoCo that also stores the sample id of each key in its queue."""

    config: MoCHiConfig
    queue_ids: Tensor

    def __init__(self, config: MoCHiConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        unknown_L2 = torch.full((config.queue.capacity, 2), -1, dtype=torch.int64)
        self.register_buffer("queue_ids", unknown_L2)

    def _contrast(
        self, query_BD: Tensor, key_BD: Tensor, step: int, samples: SampleInfo | None
    ) -> ContrastOutput:
        """Return MoCo's contrast, after `start_step` with mixed hardest keys (section 4)."""
        ids_B2 = torch.full_like(self.queue_ids[: len(query_BD)], -1)
        if samples is not None:
            ids_B2 = samples.ids.to(self.queue_ids.device, non_blocking=True)
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
        self._store_ids(all_gather_rows(ids_B2, self.group))
        enqueue(k_BD, self.queue, step, self.group)
        return ContrastOutput(loss, q_BD, k_BD, logits)

    @torch.no_grad()
    def _mix(self, q_BD: Tensor, queue_LD: Tensor, is_own_BL: Tensor, step: int) -> Tensor:
        """Return the mixtures (B, S + T, D) of each query; none before `start_step`."""
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
    def _readings(self, contrast: ContrastOutput, step: int) -> dict[str, Tensor | float]:
        """Return the readings of MoCo; excluded keys do not count in the mean of the negatives."""
        negative_BN = contrast.logits[:, 1:].detach() * self.config.temperature
        is_left_out_BN = negative_BN.isinf()
        mine = [negative_BN.masked_fill(is_left_out_BN, 0.0).sum(), (~is_left_out_BN).sum()]
        total, count = all_reduce_sum(torch.stack(mine), self.group)
        return {**super()._readings(contrast, step), "negative_cosine": total / count}

    @torch.no_grad()
    def _store_ids(self, ids_G2: Tensor) -> None:
        """Store the ids of the keys that enter the queue next."""
        slots_G = self.queue.position + torch.arange(len(ids_G2), device=ids_G2.device)
        self.queue_ids[slots_G % self.queue.capacity] = ids_G2
