"""Status of a run as text: the same on the other side, and nothing else is taken for one."""

import json
import math
from dataclasses import replace

import pytest

from cluster.protocol.status_json import status_from_json, status_to_json
from tests.cluster.driver.test_fault_drill import STATUS


def test_a_status_survives_the_way_through_text():
    """`streamssl status` would show other numbers than Control has."""
    status = replace(STATUS, step_seconds=math.inf, pending=("2 x readers",), pages={"driver": "a"})
    assert status_from_json(status_to_json(status)) == status


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "many"},
        {"nodes": [{"node": "a"}]},
        {"actors": 3},
        {"leases": None},
        {"readings": {"a": 1}},
        {"readings": [["a", "b"]]},
        {"wanted": [1]},
    ],
)
def test_anything_else_is_refused_with_its_place(changes):
    """A table would end in a traceback."""
    fields = json.loads(status_to_json(STATUS)) | changes
    with pytest.raises(ValueError, match="the answer is no status: "):
        status_from_json(json.dumps(fields))
