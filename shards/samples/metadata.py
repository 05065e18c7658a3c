"""What a sample says about itself: its JSON member, for which nobody vouches."""

import json
from typing import Any

from shards.records import Sample

# Web pages put a few kilobytes there; as Python objects it may take thirty times its bytes.
MAX_BYTES = 1 << 20


class MetadataError(ValueError):
    """The JSON member cannot be used; the message says why."""


def read_metadata(sample: Sample) -> dict[str, Any]:
    """The object in the sample's `json` member; empty where there is no such member.

    Raises MetadataError where it is too long, too deep, no JSON, or no object.
    """
    data = sample.fields.get("json")
    if data is None:
        return {}
    if len(data) > MAX_BYTES:
        raise MetadataError(f"the json member has {len(data)} bytes, more than {MAX_BYTES}")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MetadataError(f"the json member: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise MetadataError(f"the json member is no object but a {type(found).__name__}")
    return found
