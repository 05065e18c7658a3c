"""Address of the Control of a run, which is saved in the folder of the run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.access import raise_denied
from shards.errors import ConfigError
from shards.files import write_atomic

PLACE = "place.json"


@dataclass(frozen=True, slots=True)
class RunPlace:
    """Ray address and namespace under which the Control of a run answers."""

    address: str
    namespace: str


def write_place(folder: Path, place: RunPlace) -> None:
    """Save the place in `folder`, so that another process can find the run."""
    write_atomic(folder / PLACE, json.dumps(asdict(place)))


def read_place(folder: Path) -> RunPlace:
    """Return the place that `write_place` saved. Raises ConfigError."""
    try:
        place = RunPlace(**json.loads((folder / PLACE).read_text()))
        if not (isinstance(place.address, str) and isinstance(place.namespace, str)):
            raise ValueError(f"{folder / PLACE} holds no address")
        return place
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise_denied(error, folder)
        raise ConfigError(
            f"{folder.parent} names no Ray cluster ({error}); only a run that was started with "
            "--cluster has a Control: name the folder of such a run, or give --address"
        ) from error
