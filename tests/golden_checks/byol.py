"""BYOL: the loss of both directions, and whole updates with LARS and the momentum target."""

import torch
from torch import Tensor, nn

from streamssl.methods.byol import regression_loss, symmetric_loss
from streamssl.methods.fine_tuning import classification_loss
from streamssl.modules.momentum import MomentumCopy
from streamssl.optim.optimizers import LARS
from streamssl.optim.schedules import linearly_scaled_lr, rising_momentum, warmup_cosine_lr
from tests.golden_checks.vectors import Report, Vectors


def check_byol(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/pred1$"):
        _check_loss(vectors.under(case), report)


def _check_loss(here: Vectors, report: Report) -> None:
    predictions = [here.tensor(f"pred{view}").requires_grad_() for view in (1, 2)]
    targets = [here.tensor(f"proj{view}").requires_grad_() for view in (1, 2)]
    for name, (p, z) in {"loss12": (0, 1), "loss21": (1, 0)}.items():
        found = regression_loss(predictions[p], targets[z])
        report.compare(here.prefix + name, found, here.array(name))
    loss = symmetric_loss(predictions, targets)
    loss.backward()
    report.compare(here.prefix + "repr_loss", loss, here.array("repr_loss"))
    for view, prediction in enumerate(predictions, 1):
        name = f"grad_pred{view}"
        report.compare_gradient(here.prefix + name, prediction.grad, here.array(name))
    assert all(target.grad is None for target in targets)
    logits = here.tensor("logits").requires_grad_()
    classifier = classification_loss(logits, here.tensor("labels"), None)
    classifier.backward()
    report.compare(here.prefix + "classif_loss", classifier, here.array("classif_loss"))
    report.compare(here.prefix + "total_loss", loss + classifier, here.array("total_loss"))
    report.compare_gradient(here.prefix + "grad_logits", logits.grad, here.array("grad_logits"))


class _Net(nn.Module):
    """Network of the file: a linear projector with scale and offset, predictor, classifier."""

    def __init__(self, weights: Vectors) -> None:
        super().__init__()
        self.names = weights.names()
        for name in self.names:
            self.register_parameter(_own(name), nn.Parameter(weights.tensor(name)))

    def weight(self, name: str) -> Tensor:
        return self.get_parameter(_own(name))

    def project(self, x: Tensor) -> Tensor:
        z = x @ self.weight("projector/linear.w") + self.weight("projector/linear.b")
        scale, offset = (
            self.weight(f"projector/batch_norm.{name}") for name in ("scale", "offset")
        )
        return z * scale + offset

    def predict(self, x: Tensor) -> Tensor:
        return self.project(x) @ self.weight("predictor/linear.w")

    def classify(self, x: Tensor) -> Tensor:
        return x @ self.weight("classifier.w") + self.weight("classifier.b")


def _own(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


def check_byol_update(vectors: Vectors, report: Report) -> None:
    """Compare gradients, LARS, then the target, step by step."""
    online = _Net(vectors.under("init/online"))
    target = MomentumCopy(_Net(vectors.under("init/target")))
    optimizer = _optimizer(online, vectors)
    for _, here in vectors.steps():
        position = here.count("global_step")
        lr = warmup_cosine_lr(
            position,
            num_positions=vectors.count("max_steps"),
            warmup=vectors.count("warmup_steps"),
            base_lr=linearly_scaled_lr(vectors.number("base_lr"), vectors.count("batch_size")),
        )
        tau = rising_momentum(
            position,
            num_positions=vectors.count("max_steps"),
            base_momentum=vectors.number("base_target_ema"),
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        _check_step(here, online, target, report)
        optimizer.step()
        target.update(online, tau)
        report.compare(here.prefix + "learning_rate", lr, here.array("learning_rate"))
        report.compare(here.prefix + "tau", tau, here.array("tau"))
        for kind, net in (("online", online), ("target", target.network)):
            after = here.under(kind)
            for name in after.names():
                report.compare(after.prefix + name, net.weight(name), after.array(name))


def _check_step(here: Vectors, online: _Net, target: MomentumCopy, report: Report) -> None:
    views = [here.tensor(f"view{view}") for view in (1, 2)]
    with torch.no_grad():
        targets = [target.network.project(view) for view in views]
    repr_loss = symmetric_loss([online.predict(view) for view in views], targets)
    classifier = classification_loss(online.classify(views[0]), here.tensor("labels"), None)
    (repr_loss + classifier).backward()
    report.compare(here.prefix + "repr_loss", repr_loss, here.array("repr_loss"))
    report.compare(here.prefix + "classif_loss", classifier, here.array("classif_loss"))
    report.compare(here.prefix + "loss", repr_loss + classifier, here.array("loss"))


def _optimizer(online: _Net, vectors: Vectors) -> LARS:
    def is_spared(name: str) -> bool:
        module, _, leaf = name.rpartition(".")
        return leaf == "b" or "norm" in module

    spared = [online.weight(name) for name in online.names if is_spared(name)]
    others = [online.weight(name) for name in online.names if not is_spared(name)]
    groups = [
        {"params": others, "weight_decay": vectors.number("weight_decay")},
        {"params": spared, "weight_decay": 0.0, "adapt": False},
    ]
    momentum, eta = vectors.number("momentum"), vectors.number("eta")
    return LARS(groups, 0.0, momentum=momentum, trust_coefficient=eta)
