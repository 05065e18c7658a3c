"""SupCon with labels, without, with any mask, and without positives."""

import torch
from torch import Tensor

from streamssl.methods.supcon import same_label, supcon_loss
from tests.golden_checks.vectors import Report, Vectors


def check_supcon(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"((?:unit|unnorm)/[^/]+/[^/]+/[^/]+)/loss$"):
        norm, temperature, anchors, kind = case.split("/")
        name = f"features1_{norm}" if kind == "nopos" else f"features_{norm}"
        _check_case(
            vectors,
            case,
            report,
            features=vectors.tensor(name),
            positive=_positive(vectors, kind),
            only_first=anchors == "one",
            temperature=float(temperature.removeprefix("T")),
            base_temperature=0.07,
        )
    for case in vectors.match(r"(base[^/]*)/loss$"):
        base = float(case.removeprefix("base"))
        _check_case(
            vectors,
            case,
            report,
            features=vectors.tensor("features_unit"),
            positive=_positive(vectors, "simclr"),
            only_first=False,
            temperature=base,
            base_temperature=base,
        )


def _positive(vectors: Vectors, kind: str) -> Tensor:
    labels = vectors.tensor("labels")
    if kind == "mask":
        return vectors.tensor("custom_mask")
    return same_label(labels if kind in ("labels", "nopos") else torch.full_like(labels, -1), None)


def _check_case(
    vectors: Vectors,
    case: str,
    report: Report,
    *,
    features: Tensor,
    positive: Tensor,
    only_first: bool,
    temperature: float,
    base_temperature: float,
) -> None:
    features.requires_grad_()
    num_samples, num_views, _ = features.shape
    contrasts = torch.cat(features.unbind(1))
    num_anchors = num_samples * (1 if only_first else num_views)
    loss = supcon_loss(
        contrasts[:num_anchors],
        contrasts,
        positive.repeat(num_anchors // num_samples, num_views),
        torch.arange(num_anchors),
        temperature=temperature,
        base_temperature=base_temperature,
    )
    loss.backward()
    here = vectors.under(case)
    report.compare(here.prefix + "loss", loss, here.array("loss"))
    report.compare_gradient(here.prefix + "grad", features.grad, here.array("grad"))
