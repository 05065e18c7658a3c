"""SeLa's transport of samples to labels: plan, labels and number of iterations."""

import torch

from streamssl.methods.sela import solve_transport
from tests.golden_checks.vectors import Report, Vectors


def check_sela(vectors: Vectors, report: Report) -> None:
    for case in vectors.match(r"([^/]+)/probs"):
        here = vectors.under(case)
        if "logits" in here:
            probs = torch.softmax(here.tensor("logits"), dim=1)
            report.compare(f"{case}/probs", probs, here.array("probs"))
        log_p = here.tensor("probs").log()
        exponent = here.number("lambda")
        found = solve_transport(log_p, exponent=exponent, tolerance=here.number("tol"))
        report.compare(f"{case}/labels", found.labels_N, here.array("labels"))
        report.compare(f"{case}/iterations", found.num_iterations, here.array("iterations"))
        if "plan" in here:
            report.compare(f"{case}/plan", found.plan_NK.T, here.array("plan"))
        if "final_err" in here:
            report.compare(f"{case}/final_err", found.error, here.array("final_err"))
        if "cost" in here:
            cost = -log_p.gather(1, found.labels_N[:, None]).mean()
            report.compare(f"{case}/cost", cost, here.array("cost"))
