"""Fault injection: breaks an actor or a node of a run; only its driver does so.

A task of Ray on the node of the target sends the signal.
"""

import os
import signal
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.driver.fault_drill import DrillTarget, Fault
from cluster.protocol.run_status import Status
from shards.errors import ConfigError


def choose_target(status: Status, fault: Fault, name: str = "") -> DrillTarget:
    """Return the named target, or the first that fits. Raises ConfigError."""
    if fault == "kill-node":
        return _choose_node(status, name)
    role = {"kill-reader": "reader", "kill-trainer": "trainer", "hang": ""}[fault]
    fit = [one for one in status.actors if one.role == role or not role]
    named = [one for one in fit if one.name == name or not name]
    if not named:
        known = ", ".join(one.name for one in fit) or "none"
        raise ConfigError(f"no {role or 'actor'} {name!r} in this run; there are: {known}")
    return DrillTarget(names=(named[0].name,), node=named[0].node, pid=named[0].pid)


def _choose_node(status: Status, name: str) -> DrillTarget:
    """Return the node with the most actors, without the head: its loss would end the run."""
    heads = {node.node for node in status.nodes if node.is_head}
    found: dict[str, list[str]] = {}
    for one in status.actors:
        if one.node not in heads:
            found.setdefault(one.node, []).append(one.name)
    fit = [node for node in found if node.startswith(name)]
    if not fit:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"no node {name!r} that can be spared; besides the head, actors are on: {known}"
        )
    node = max(fit, key=lambda node: (len(found[node]), node))
    return DrillTarget(names=tuple(found[node]), node=node)


def inject(target: DrillTarget, fault: Fault) -> Callable[[], None]:
    """Break the target. Return the function that ends a hang."""
    if fault == "kill-node":
        run_on(target.node, _kill_raylet)
    elif fault == "hang":
        run_on(target.node, _send, target.pid, int(signal.SIGSTOP))
        return lambda: run_on(target.node, _send, target.pid, int(signal.SIGCONT))
    else:
        run_on(target.node, _send, target.pid, int(signal.SIGKILL))
    return lambda: None


def run_on(node: str, function: Callable[..., Any], *arguments: object) -> None:
    """Run a function on a node. `_kill_raylet` ends the node, so its failure is expected."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(function)
    try:
        ray.get(task.remote(*arguments), timeout=30)
    except RayError:
        if function is not _kill_raylet:
            raise


def do_nothing() -> None:
    """Start the worker process that later sends the signal."""


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_raylet() -> None:
    """Kill the daemon that started this process; everything that it started ends with it."""
    os.kill(os.getppid(), signal.SIGKILL)
