"""Facts of a run for its live page, and thresholds of its readings; see docs/runbook.md."""

import math
from pathlib import Path

from cluster.monitoring.run_state import RunInfo, Thresholds
from shards.metric import PREFIX
from streamssl.config.run_config import RunConfig
from streamssl.monitoring.exported_readings import EXPORTED
from streamssl.training.collapse_limits import LIMITS


def run_info(out: Path, config: RunConfig, *, cluster: str, began: float) -> RunInfo:
    """Return the facts of the run in the folder `out`."""
    return RunInfo(
        name=out.resolve().name,
        method=config.method_name,
        cluster=cluster,
        num_steps=config.num_steps,
        batch_size=config.stream.batch_size,
        began=began,
        thresholds=thresholds(config),
    )


def thresholds(config: RunConfig) -> Thresholds:
    """Return bounds of readings by series name; beyond them the run needs attention."""
    found = {"prototypes_dead_ratio": {"high": 0.5}, "lead_seconds": {"low": 1.0}}
    for limit in LIMITS:
        side = "low" if limit.side == "below" else "high"
        found[EXPORTED[limit.reading][0]] = {side: limit.value}
    num_prototypes = getattr(config.method, "num_prototypes", None)
    if isinstance(num_prototypes, int):
        found["loss"] = found["assignment_entropy_nats"] = {"high": math.log(num_prototypes)}
    return {f"{PREFIX}{name}": limits for name, limits in found.items()}
