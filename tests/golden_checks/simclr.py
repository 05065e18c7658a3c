"""SimCLR: NT-Xent in one process and on ranks, distillation, the selective-kernel unit."""

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.distributed.collectives import rank
from streamssl.methods.distillation import distillation_loss
from streamssl.methods.simclr import nt_xent
from streamssl.modules.selective_kernels import SelectiveKernels
from tests.golden_checks.vectors import Report, Vectors


def check_ntxent(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/hidden$"):
        here = vectors.under(case)
        for setting in here.match(r"([^/]+)/loss$"):
            _check_case(here, here.under(setting), setting, report, None)


def check_ntxent_rank(vectors: Vectors, report: Report, group: ProcessGroup) -> None:
    place = f"rank{rank(group)}"
    for case in vectors.match(rf"([^/]+)/{place}/hidden$"):
        here = vectors.under(case)
        for setting in here.match(rf"([^/]+)/{place}/loss$"):
            _check_case(here.under(place), here.under(f"{setting}/{place}"), setting, report, group)


def check_ntxent_joined(vectors: Vectors, report: Report) -> None:
    """Compare one process with the global batch: mean losses and mean gradients."""
    for case in vectors.match(r"([^/]+)/rank0/hidden$"):
        here = vectors.under(case)
        ranks = here.match(r"(rank\d+)/hidden$")
        views = [here.tensor(f"{name}/hidden").chunk(2) for name in ranks]
        first, second = (torch.cat(parts) for parts in zip(*views, strict=True))
        for setting in here.match(r"([^/]+)/rank0/loss$"):
            parts = [here.under(f"{setting}/{name}") for name in ranks]
            hidden = torch.cat([first, second]).requires_grad_()
            loss, _ = nt_xent(F.normalize(hidden, dim=1, eps=1e-6), _temperature(setting))
            loss.backward()
            assert hidden.grad is not None
            expected = torch.stack([part.tensor("loss") for part in parts]).mean()
            report.compare(f"joined {case}/{setting}/loss", loss, expected)
            found = torch.cat(
                [
                    torch.cat(rows)
                    for rows in zip(
                        *(half.chunk(len(ranks)) for half in hidden.grad.chunk(2)), strict=True
                    )
                ]
            )
            gradient = torch.cat([part.tensor("grad") for part in parts]) / len(ranks)
            report.compare_gradient(f"joined {case}/{setting}/grad", found, gradient)


def _temperature(setting: str) -> float:
    return float(setting.removeprefix("T").partition("_")[0])


def _check_case(
    given: Vectors, here: Vectors, setting: str, report: Report, group: ProcessGroup | None
) -> None:
    hidden = given.tensor("hidden").requires_grad_()
    z = hidden if "nonorm" in setting else F.normalize(hidden, dim=1, eps=1e-6)
    loss, logits = nt_xent(z, _temperature(setting), group=group)
    # The file has the gradient of the sum of all ranks' losses.
    loss.backward()
    num_rows, num_samples = len(logits) // 2, logits.shape[1] // 2
    report.compare(here.prefix + "loss", loss, here.array("loss"))
    report.compare(
        here.prefix + "logits_ab", logits[:num_rows, num_samples:], here.array("logits_ab")
    )
    report.compare_gradient(here.prefix + "grad", hidden.grad, here.array("grad"))


def check_distillation(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/loss$"):
        here = vectors.under(case)
        student = vectors.tensor("student_logits").requires_grad_()
        teacher = vectors.tensor("teacher_logits").requires_grad_()
        loss = distillation_loss(student, teacher, _temperature(case))
        loss.backward()
        report.compare(here.prefix + "loss", loss, here.array("loss"))
        report.compare_gradient(
            here.prefix + "grad_student", student.grad, here.array("grad_student")
        )
        untouched = int(teacher.grad is None)
        report.compare(
            here.prefix + "teacher_grad_is_none", untouched, here.array("teacher_grad_is_none")
        )


def check_selective_kernels(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/conv_kernel$"):
        here = vectors.under(case)
        unit = _unit(here)
        x = here.tensor("input").permute(0, 3, 1, 2)
        for mode in ("eval", "train"):
            unit.train(mode == "train")
            with torch.no_grad():
                y = unit(x)
            name = f"out_{mode}"
            report.compare(here.prefix + name, y.permute(0, 2, 3, 1), here.array(name))
        with torch.no_grad():
            before = unit.convolution(x)
        _check_statistics(here, "bn", unit.norm, before[:, 0].numel(), report)
        _check_statistics(here, "bn1", unit.squeeze_norm, len(x), report)


def _unit(here: Vectors) -> SelectiveKernels:
    kernel, squeeze = here.tensor("conv_kernel"), here.tensor("mix0_kernel")
    channels, middle = squeeze.shape[2:]
    unit = SelectiveKernels(
        kernel.shape[2], channels, stride=here.count("stride"), ratio=(middle + 0.5) / channels
    )
    for layer, name in {
        unit.convolution: "conv_kernel",
        unit.squeeze: "mix0_kernel",
        unit.expand: "mix1_kernel",
    }.items():
        layer.weight.data = here.tensor(name).permute(3, 2, 0, 1).contiguous()
    for norm, name in {unit.norm: "bn", unit.squeeze_norm: "bn1"}.items():
        norm.weight.data, norm.bias.data = here.tensor(f"{name}_gamma"), here.tensor(f"{name}_beta")
        if f"{name}_mean" in here:
            norm.running_mean = here.tensor(f"{name}_mean")
            norm.running_var = here.tensor(f"{name}_var")
    return unit


def _check_statistics(
    here: Vectors, name: str, norm: nn.BatchNorm2d, num_values: int, report: Report
) -> None:
    """Convert torch's unbiased variance of a batch to the biased one of Keras."""
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.momentum is not None
    mean, variance = f"{name}_mean_after", f"{name}_var_after"
    before = here.tensor(f"{name}_var") if f"{name}_var" in here else torch.ones(())
    kept: Tensor = (1 - norm.momentum) * before
    biased = kept + (norm.running_var - kept) * (num_values - 1) / num_values
    report.compare(here.prefix + mean, norm.running_mean, here.array(mean))
    report.compare(here.prefix + variance, biased, here.array(variance))
