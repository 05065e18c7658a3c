"""Labels of samples: one reader for training, packing and evaluation.

The label named `cls` is the member `cls`, or else field `cls` of the JSON member; `meta.label` is a
field of a field. A label is a class number from 0 or a word: 3, 3.0 and "3" are equal. Negative
numbers, null, NaN and empty text are no label. From a list, such as hashtags, each epoch draws one
entry. Methods get whole numbers: class numbers below 2^31 as they are, any other label as a larger
number, a hash of its text, so equal words are equal everywhere.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.records import Sample
from shards.samples.image_member import image_members
from shards.samples.metadata import MetadataError, read_field, read_short_fields

NO_LABEL: Final = -1
# Members, and then JSON fields, that are tried in this order where the user named none.
USUAL_NAMES: Final = ("cls", "label", "class")
_USUAL_FIELDS: Final = ("label", "cls", "class")
# Numbers from here on stand for words.
FIRST_HASH: Final = 1 << 31
_MAX_CANDIDATES: Final = 20
_NUMBER: Final = re.compile(r"([+-]?)(\d{1,18})(\.0*)?", re.ASCII)

Label = int | str


def read_labels(samples: Sequence[Sample], name: str, epoch: int) -> NDArray[np.int64]:
    """Return the labels (N,) of samples in `epoch`; `NO_LABEL` for samples without one."""
    return np.array([read_label(sample, name, epoch) for sample in samples], dtype=np.int64)


def read_label(sample: Sample, name: str, epoch: int) -> int:
    """Return the label of one sample in `epoch` as a number, or `NO_LABEL`."""
    label = find_label(sample, name, epoch)
    return NO_LABEL if label is None else _number(label)


def find_label(sample: Sample, name: str = "", epoch: int = 0) -> Label | None:
    """Return the label of one sample: a class number or a word; None if it has none.

    Without a `name` it is a member cls, label or class, or else a JSON field of these names.
    """
    members = (name,) if name else USUAL_NAMES
    for each in members:
        if each in sample.fields:
            return plain_label(sample.fields[each].decode("utf-8-sig", errors="replace"))
    labels = (_read(sample, each, epoch) for each in ((name,) if name else _USUAL_FIELDS))
    return next((label for label in labels if label is not None), None)


def _read(sample: Sample, name: str, epoch: int) -> Label | None:
    try:
        value = read_field(sample, name)
    except MetadataError:
        return None
    if isinstance(value, list):
        value = value[_draw(sample, epoch) % len(value)] if value else None
    return plain_label(value)


def plain_label(value: Any) -> Label | None:
    """Return a value as a class number or a word; None if it is no label."""
    if value is None or isinstance(value, dict | list):
        return None
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        value = None if math.isnan(value) else int(value)
    text = "" if value is None else str(value).strip()
    text = text.lower() if isinstance(value, bool) else unicodedata.normalize("NFC", text)
    if number := _NUMBER.fullmatch(text):
        is_negative = number[1] == "-" and int(number[2]) > 0
        return None if is_negative else int(number[2])
    return text or None


def label_candidates(sample: Sample) -> list[str]:
    """Return the members and JSON fields of a sample that could be a label, for a message."""
    images = image_members(sample)
    found = [name for name in sample.fields if name not in ("", "json", *images)]
    for name, value in read_short_fields(sample).items():
        if isinstance(value, dict):
            found += [f"{name}.{inner}" for inner, one in value.items() if _is_plain(one)]
        elif _is_plain(value):
            found.append(name)
    return found[:_MAX_CANDIDATES]


def describe_candidates(names: Sequence[str]) -> str:
    """Return what a user can do where a label is missing, and these names could be meant."""
    if not names:
        return (
            "the samples have no member and no JSON field that could be a label: name shards with "
            "labels"
        )
    found = ", ".join(names)
    return f"members and JSON fields that could be labels are {found}: name one with --label"


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _number(label: Label) -> int:
    if isinstance(label, int) and label < FIRST_HASH:
        return label
    text = str(label)
    digest = blake2b(text.encode(), digest_size=8, person=b"streamssl label").digest()
    return max(int.from_bytes(digest, "little") >> 1, FIRST_HASH)


def _draw(sample: Sample, epoch: int) -> int:
    key = np.array([epoch, sample.shard, sample.offset], dtype="<i8").tobytes()
    digest = blake2b(key, digest_size=8, person=b"streamssl label").digest()
    return int.from_bytes(digest, "little")
