"""Status client: reads the status of a run from its Control, on a Ray cluster that the user names.

Whoever joins a Ray runs what it sends: the address comes from the command line only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.util import list_named_actors

from cluster.driver.ray_session import NAMESPACE, joined_ray
from cluster.protocol.actor_rpc import CONTROL, ActorClient, Unreachable
from cluster.protocol.run_status import Status
from shards.errors import ConfigError

_ANSWER_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ClusterClient:
    """Client of the only run of a cluster; see `cluster_client`."""

    control: ActorClient

    def status(self) -> Status:
        """Return the status of the run. Raises ConfigError if Control does not answer."""
        try:
            found: Status = self.control.call("status", seconds=_ANSWER_SECONDS)
        except Unreachable as error:
            raise ConfigError(
                f"no Control of this run answers ({error}); a run has one while its command runs: "
                "start that again, or name another run"
            ) from error
        return found


@contextmanager
def cluster_client(address: str) -> Iterator[ClusterClient]:
    """Connect to the only run of a Ray cluster. Raises ConfigError if there are none or several."""
    namespace = _find_run(address)
    with joined_ray(address, namespace):
        yield ClusterClient(ActorClient(CONTROL))


def _find_run(address: str) -> str:
    """Return the namespace of the only run."""
    with joined_ray(address):
        found = sorted(
            {
                actor["namespace"]
                for actor in list_named_actors(all_namespaces=True)
                if actor["name"] == CONTROL and actor["namespace"].startswith(NAMESPACE)
            }
        )
    if len(found) != 1:
        raise ConfigError(
            f"{len(found)} runs have a Control at {address!r}; "
            + ("name the folder of one instead" if found else "start one with --cluster")
        )
    return found[0]
