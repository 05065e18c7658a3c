"""MoCo v3: the contrastive loss of both directions, the momentum update between them."""

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import rank
from streamssl.methods.moco_v3 import contrast_with_batch
from streamssl.modules.momentum import MomentumCopy
from tests.golden_checks.vectors import Report, Vectors


def check_moco_v3(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/q1$"):
        here = vectors.under(case)
        _check_losses(here, report, None)
        _check_encoders(here, report)
        q = here.tensor("unit_q").requires_grad_()
        loss, _ = contrast_with_batch(q, here.tensor("unit_k"), here.number("T"), None)
        loss.backward()
        report.compare(here.prefix + "unit_loss", loss, here.array("unit_loss"))
        report.compare_gradient(here.prefix + "unit_grad_q", q.grad, here.array("unit_grad_q"))


def check_moco_v3_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    here = vectors.under(f"rank{rank(group)}")
    for case in here.match(r"([^/]+)/q1$"):
        _check_losses(here.under(case), report, group)


def check_moco_v3_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the global batch: the average of the ranks' losses."""
    ranks = [vectors.under(name) for name in vectors.match(r"(rank\d+)/")]
    for case in ranks[0].match(r"([^/]+)/q1$"):
        parts = [part.under(case) for part in ranks]
        q1, q2, k1, k2 = (
            torch.cat([part.tensor(name) for part in parts]) for name in ("q1", "q2", "k1", "k2")
        )
        temperature = parts[0].number("T")
        first, _ = contrast_with_batch(q1, k2, temperature, None)
        second, _ = contrast_with_batch(q2, k1, temperature, None)
        expected = torch.stack([part.tensor("loss") for part in parts]).mean()
        report.compare(f"joined {case}/loss", first + second, expected)


def _check_losses(here: Vectors, report: Report, group: ProcessGroup | None) -> None:
    q1, q2 = (here.tensor(name).requires_grad_() for name in ("q1", "q2"))
    temperature = here.number("T")
    first, _ = contrast_with_batch(q1, here.tensor("k2"), temperature, group)
    second, _ = contrast_with_batch(q2, here.tensor("k1"), temperature, group)
    (first + second).backward()
    found: dict[str, Tensor] = {"loss_q1k2": first, "loss_q2k1": second, "loss": first + second}
    for name, loss in found.items():
        report.compare(here.prefix + name, loss, here.array(name))
    for name, query in {"grad_q1": q1, "grad_q2": q2}.items():
        report.compare_gradient(here.prefix + name, query.grad, here.array(name))


def _check_encoders(here: Vectors, report: Report) -> None:
    """Compute queries by the network, and keys by the copy after its update."""
    base = _encoder(here.tensor("base_param0"), here.tensor("base_param1"))
    copy = MomentumCopy(
        _encoder(here.tensor("mom_param0_before"), here.tensor("mom_param1_before"))
    )
    copy.update(base, here.number("m"))
    predictor = here.tensor("predictor_W")
    for place, parameter in enumerate(copy.parameters()):
        name = f"mom_param{place}_after"
        report.compare(here.prefix + name, parameter, here.array(name))
    for view in (1, 2):
        crops = here.tensor(f"x{view}")
        query = base(crops) @ predictor.T
        report.compare(here.prefix + f"q{view}", query, here.array(f"q{view}"))
        report.compare(here.prefix + f"k{view}", copy(crops), here.array(f"k{view}"))


def _encoder(weight: Tensor, bias: Tensor) -> nn.Linear:
    encoder = nn.Linear(weight.shape[1], weight.shape[0])
    encoder.weight.data.copy_(weight)
    encoder.bias.data.copy_(bias)
    return encoder
