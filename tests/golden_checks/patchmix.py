"""PatchMix: mixed images, soft targets, every part of the loss, and the momentum of a step."""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import rank, world_size
from streamssl.methods.patchmix import (
    EncodedViews,
    MixingRing,
    MixingTargets,
    identity_targets,
    mix_patches,
    mixture_targets,
    patchmix_losses,
    source_targets,
)
from streamssl.optim.schedules import rising_momentum
from tests.golden_checks.vectors import Report, Vectors

# The authors' code does not pass its smoothing to the targets of images that are not mixed.
IDENTITY_SMOOTHING = 0.1
PARTS = {
    "loss_src": "source",
    "loss_mix": "mix",
    "loss_mix_mix": "mix_mix",
    "loss_multi": "crops",
    "loss_multi_mix": "crops_mix",
}


def check_mix(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/perm$"):
        here = vectors.under(case)
        num_mixed, smoothing = here.count("m"), here.number("smoothing")
        num = len(here.array("images"))
        report.compare(f"{case}/mixed", _mix(here, "images", "perm", here), here.array("mixed"))
        ring = _own_ring(num, here.count("rank"), here.count("world"))
        to_source = source_targets(num, ring, num_mixed=num_mixed, smoothing=smoothing)
        to_mixed = mixture_targets(num, ring, num_mixed=num_mixed, smoothing=smoothing)
        report.compare(f"{case}/source", to_source, here.array("target_mix_to_orig"))
        report.compare(f"{case}/mixture", to_mixed, here.array("target_mix_to_mix"))


def check_loss(vectors: Vectors, report: Report) -> None:
    _replay(vectors, report, None)
    epoch, num_iter = vectors.count("epoch"), vectors.count("num_iter")
    momenta = [
        rising_momentum(
            epoch + i / num_iter,
            num_positions=vectors.count("epochs"),
            base_momentum=vectors.number("moco_m_base"),
        )
        for i in range(num_iter)
    ]
    report.compare("moco_m_intended", momenta, vectors.array("moco_m_intended"))


def check_loss_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    _replay(vectors.under(f"rank{rank(group)}"), report, group)


def check_loss_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the queries and keys of all ranks: the average losses."""
    ranks = [vectors.under(name) for name in vectors.match(r"(rank\d+)/")]
    for step, _ in ranks[0].steps():
        parts = [each.under(f"step{step}") for each in ranks]
        encoded = EncodedViews(*(torch.cat([p.tensor(n) for p in parts]) for n in _names()))
        targets = MixingTargets(*(torch.cat([p.tensor(n) for p in parts]) for n in _target_names()))
        losses = patchmix_losses(encoded, targets, ranks[0].number("temperature"), None)
        total = torch.stack(list(losses.values())).sum()
        expected = torch.stack([part.tensor("loss_loss") for part in parts]).mean()
        report.compare(f"joined step{step}/loss", total, expected)


def _names() -> tuple[str, ...]:
    return ("q1", "k1", "k2", "mk1", "mq2")


def _target_names() -> tuple[str, ...]:
    return ("target_identity", "target_mix", "target_mixmix")


def _replay(settings: Vectors, report: Report, group: ProcessGroup | None) -> None:
    for _, here in settings.steps():
        for view in (1, 2):
            mixed = _mix(here, f"view{view}", f"perm_view{view}", settings)
            report.compare(here.prefix + f"mixed{view}", mixed, here.array(f"mixed{view}"))
        targets = _check_targets(settings, here, report, group)
        encoded = _encoded(settings, here, report)
        leaves = {
            "q1": encoded.q1, "mq2": encoded.mixed_q2,
            "multi_q": encoded.crops_q, "multi_mq": encoded.crops_mixed_q,
        }  # fmt: skip
        losses = patchmix_losses(encoded, targets, settings.number("temperature"), group)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        report.compare(here.prefix + "loss_loss", total, here.array("loss_loss"))
        for recorded, name in PARTS.items():
            if recorded in here:
                report.compare(here.prefix + recorded, losses[name], here.array(recorded))
        for name, leaf in leaves.items():
            if leaf is not None:
                gradient = here.array(f"grad_{name}")
                report.compare_gradient(here.prefix + f"grad_{name}", leaf.grad, gradient)


def _encoded(settings: Vectors, here: Vectors, report: Report) -> EncodedViews:
    q1, k1, k2, mk1, mq2 = (here.tensor(name) for name in _names())
    crops: list[Tensor | None] = [None, None]
    if "multi_q" in here:
        crops = [here.tensor(name).requires_grad_() for name in ("multi_q", "multi_mq")]
    for number in here.match(r"crop(\d+)$"):
        mixed = _mix(here, f"crop{number}", f"perm_crop{number}", settings)
        name = f"mixed_crop{number}"
        report.compare(here.prefix + name, mixed, here.array(name))
    return EncodedViews(q1.requires_grad_(), k1, k2, mk1, mq2.requires_grad_(), *crops)


def _check_targets(
    settings: Vectors, here: Vectors, report: Report, group: ProcessGroup | None
) -> MixingTargets:
    num, num_mixed = len(here.array("q1")), settings.count("m")
    ring = _own_ring(num, rank(group), world_size(group))
    targets = MixingTargets(
        identity_targets(num, ring, smoothing=IDENTITY_SMOOTHING),
        source_targets(num, ring, num_mixed=num_mixed, smoothing=0.0),
        mixture_targets(num, ring, num_mixed=num_mixed, smoothing=0.0),
    )
    for name, value in zip(
        _target_names(), (targets.identity, targets.source, targets.mixture), strict=True
    ):
        report.compare(here.prefix + name, value, here.array(name))
    return targets


def _own_ring(num: int, place: int, world: int) -> MixingRing:
    """Return the rings of ranks: the authors' code mixes the images of each rank separately."""
    return MixingRing(0, num, num * world, start=num * place)


def _mix(here: Vectors, images: str, order: str, settings: Vectors) -> Tensor:
    given, num_mixed = here.tensor(images), settings.count("m")
    return mix_patches(
        given,
        here.tensor(order),
        patch_size=settings.count("patch_size"),
        num_mixed=num_mixed,
        following=given[: num_mixed - 1],
    )
