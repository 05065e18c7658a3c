"""Status of a run as JSON, for another process: nothing that a peer sends is ever unpickled."""

import json
from dataclasses import asdict, replace

from pydantic import TypeAdapter, ValidationError

from cluster.protocol.run_status import Status
from shards.metric import Key
from shards.validation import explain_invalid


def status_to_json(status: Status) -> str:
    """Return a status as text."""
    readings = [[list(key), value] for key, value in status.readings.items()]
    return json.dumps({**asdict(status), "readings": readings})


def status_from_json(text: str) -> Status:
    """Return the status of a text from `status_to_json`. Raises ValueError."""
    try:
        fields = json.loads(text)
    except RecursionError as error:
        raise ValueError("the answer is nested too deeply") from error
    if not isinstance(fields, dict):
        raise ValueError("the answer is no status")
    readings = fields.pop("readings", None)
    try:
        status = TypeAdapter(Status).validate_python({**fields, "readings": {}})
        found = TypeAdapter(list[tuple[Key, float]]).validate_python(readings)
    except ValidationError as error:
        raise ValueError(f"the answer is no status: {explain_invalid(error)}") from error
    return replace(status, readings=dict(found))
