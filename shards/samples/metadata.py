"""Metadata of a sample: its JSON member, which is untrusted."""

import json
from typing import Any

from shards.records import Sample

# Web pages put a few kilobytes there; as Python objects they may take thirty times their bytes.
MAX_BYTES = 1 << 20


class MetadataError(ValueError):
    """The JSON member cannot be used; the message gives the cause."""


def read_metadata(sample: Sample) -> dict[str, Any]:
    """Return the object in the `json` member of a sample; empty if there is no such member.

    Raises MetadataError if it is too long, too deep, invalid JSON, or not an object.
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
        raise MetadataError(f"the json member is a {type(found).__name__}, not an object")
    return found
