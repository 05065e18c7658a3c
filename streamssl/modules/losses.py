"""Losses as pure functions of tensors: no state, no process group, at least float32 inside.

Shape letters: V crops of a sample, B samples of this rank, K prototypes or queued keys, D feature.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is float64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def swav_loss(scores: Tensor, assignments: Mapping[int, Tensor], temperature: float) -> Tensor:
    """Return the loss of swapped prediction: other crops predict the assignment of a crop.

    `scores` (V * B, K), crop-major: rows [v * B, (v + 1) * B) are crop v. `assignments` maps the
    number of an assigned crop to its assignments (B, K), without gradient. SwAV, arXiv:2006.09882,
    eq. 2 with multi-crop (eq. 6): the mean over the assigned crops, the other V - 1 crops and the
    samples of the cross entropy - sum_k q log softmax(score / temperature). ln K if all is uniform.
    """
    num_samples = next(iter(assignments.values())).shape[0]
    num_crops = scores.shape[0] // num_samples
    assert num_crops * num_samples == scores.shape[0] and num_crops > 1
    log_p_VBK = F.log_softmax(at_least_float32(scores) / temperature, dim=1)
    log_p_VBK = log_p_VBK.view(num_crops, num_samples, -1)
    sum_BK = log_p_VBK.sum(dim=0)
    losses = [
        -(q_BK * (sum_BK - log_p_VBK[crop])).sum(1).mean() for crop, q_BK in assignments.items()
    ]
    return torch.stack(losses).mean() / (num_crops - 1)


def info_nce(
    q_BD: Tensor, k_BD: Tensor, queue_KD: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return (loss, logits (B, 1 + K)) of queries that find their keys, in column 0, in a queue.

    MoCo, arXiv:1911.05722, eq. 1. All rows have unit norm; keys and queue carry no gradient.
    ln(1 + K) if all similarities are equal.
    """
    positive_B1 = (q_BD * k_BD.detach()).sum(dim=1, keepdim=True)
    negative_BK = q_BD @ queue_KD.detach().T
    logits = at_least_float32(torch.cat([positive_B1, negative_BK], dim=1)) / temperature
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, labels), logits


def assigned_cross_entropy(
    scores_NK: Tensor,
    labels_N: Tensor,
    temperature: float,
    num_labelled: Tensor | float | None = None,
) -> Tensor:
    """Return the cross entropy of softmax(score / temperature) with the labels that are not < 0.

    DeepCluster-v2 and SeLa-v2, arXiv:2006.09882, appendix D. The sum over labelled rows is divided
    by `num_labelled`, by default their number; without labels the loss is 0. ln K if all is
    uniform.
    """
    labelled_N = labels_N >= 0
    log_p_NK = F.log_softmax(at_least_float32(scores_NK) / temperature, dim=1)
    chosen_N = log_p_NK.gather(1, labels_N.clamp(min=0)[:, None])[:, 0]
    count = torch.as_tensor(labelled_N.sum() if num_labelled is None else num_labelled)
    return -torch.where(labelled_N, chosen_N, 0.0).sum() / torch.where(count > 0, count, 1)


def soft_info_nce(q_BD: Tensor, keys_GD: Tensor, targets_BG: Tensor, temperature: float) -> Tensor:
    """Return the mean of - sum_g t log softmax(q k / T): queries find keys with soft targets.

    PatchMix, arXiv:2306.12243, eq. 3. Rows have unit norm, targets sum to 1, keys carry no
    gradient. ln G if all similarities are equal.
    """
    log_p_BG = F.log_softmax(at_least_float32(q_BD @ keys_GD.detach().T) / temperature, dim=1)
    return -(targets_BG.to(log_p_BG.dtype) * log_p_BG).sum(dim=1).mean()
