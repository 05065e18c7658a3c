"""Metadata of a sample: its JSON member, which is untrusted."""

import functools
import json
from typing import Any

import msgspec

from shards.records import Sample

# Web pages put a few kilobytes there; as Python objects they may take thirty times their bytes.
MAX_BYTES = 1 << 20
# A longer value is no label.
_SHORT_BYTES = 1 << 10


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


def read_short_fields(sample: Sample) -> dict[str, Any]:
    """Return the fields of the JSON member that are short, however long the others are.

    The result is empty if there are none, or if the member cannot be used.
    """
    try:
        if len(sample.fields.get("json", b"")) <= MAX_BYTES:
            return read_metadata(sample)
        raw = msgspec.json.decode(sample.fields["json"], type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return {name: json.loads(bytes(one)) for name, one in raw.items() if len(one) <= _SHORT_BYTES}


def read_field(sample: Sample, name: str) -> Any:
    """Return one field of the JSON member; 'meta.label' is field `label` of the object `meta`.

    A name with dots of its own is found, too. The other fields are skipped, so that a member may
    have any length. The result is None without such a field. Raises MetadataError.
    """
    data = sample.fields.get("json")
    if data is None:
        return None
    if len(data) > MAX_BYTES:
        return _skip_to(data, name)
    found: Any = read_metadata(sample)
    if name in found:
        return found[name]
    for part in name.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _skip_to(data: bytes, name: str) -> Any:
    try:
        found = _decoder(tuple(name.split("."))).decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MetadataError(f"the json member: {type(error).__name__}: {error}") from error
    for _ in name.split("."):
        found = getattr(found, "field", None)
    return found


@functools.lru_cache(maxsize=64)
def _decoder(path: tuple[str, ...]) -> "msgspec.json.Decoder[Any]":
    """Return a decoder of one field that builds no object for the others."""
    kind: Any = Any
    for part in reversed(path):
        kind = msgspec.defstruct("Wanted", [("field", kind, None)], rename={"field": part})
    return msgspec.json.Decoder(kind)
