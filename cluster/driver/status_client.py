"""Status client: reads the status of a run from its Control, from outside the run."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.util import list_named_actors

from cluster.control.run_place import RunPlace
from cluster.driver.ray_session import NAMESPACE, joined_ray
from cluster.protocol.actor_rpc import CONTROL, ActorClient, Unreachable
from cluster.protocol.run_status import Status
from shards.errors import ConfigError

_ANSWER_SECONDS = 15.0


@contextmanager
def open_control(place: RunPlace) -> Iterator[ActorClient]:
    """Connect to the Control of the run at this place. Raises ConfigError."""
    with joined_ray(place.address, place.namespace):
        yield ActorClient(CONTROL)


def read_status(control: ActorClient) -> Status:
    """Return the status of the run. Raises ConfigError if Control does not answer."""
    try:
        found: Status = control.call("status", seconds=_ANSWER_SECONDS)
    except Unreachable as error:
        raise ConfigError(
            f"no Control of this run answers ({error}); a run has one while its command runs: "
            "start that again, or name another run"
        ) from error
    return found


def find_run(address: str) -> RunPlace:
    """Return the only run of a Ray cluster. Raises ConfigError if there are none or several."""
    with joined_ray(address):
        found = sorted(
            {
                actor["namespace"]
                for actor in list_named_actors(all_namespaces=True)
                if actor["name"] == CONTROL and actor["namespace"].startswith(NAMESPACE)
            }
        )
        gcs = ray.get_runtime_context().gcs_address if "://" not in address else address
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} runs have a Control at {address!r}; "
            + ("name the folder of one instead" if found else "start one with --cluster")
        )
    return RunPlace(gcs, found[0])
