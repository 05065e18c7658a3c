"""What a sample says it shows, as one whole number: for methods that learn from labels.

A label is the member of that name (`cls`), or else that field of the sample's JSON. Whole numbers
from 0 to 2^31 stand for themselves; any other text is a number above that, made from its bytes, so
that equal words are equal everywhere. Of a list, such as hashtags, each epoch draws one entry.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.records import Sample
from shards.samples.metadata import MetadataError, read_metadata

NO_LABEL: Final = -1
_WORDS_FROM: Final = 1 << 31


def read_labels(samples: Sequence[Sample], name: str, epoch: int) -> NDArray[np.int64]:
    """The labels (N,) of samples in `epoch`; `NO_LABEL` where a sample has none."""
    return np.array([read_label(sample, name, epoch) for sample in samples], dtype=np.int64)


def read_label(sample: Sample, name: str, epoch: int) -> int:
    """The label of one sample in `epoch`, or `NO_LABEL`."""
    member = sample.fields.get(name)
    if member is not None:
        return _number(member.decode(errors="replace"))
    try:
        value = read_metadata(sample).get(name)
    except MetadataError:
        return NO_LABEL
    if isinstance(value, list):
        value = value[_draw(sample, epoch) % len(value)] if value else None
    return NO_LABEL if value is None or isinstance(value, dict | list) else _number(value)


def _number(value: Any) -> int:
    text = str(value).strip()
    if text.isascii() and text.isdigit() and int(text) < _WORDS_FROM:
        return int(text)
    if not text:
        return NO_LABEL
    digest = blake2b(text.encode(), digest_size=8, person=b"streamssl label").digest()
    return max(int.from_bytes(digest, "little") >> 1, _WORDS_FROM)


def _draw(sample: Sample, epoch: int) -> int:
    key = np.array([epoch, sample.shard, sample.offset], dtype="<i8").tobytes()
    digest = blake2b(key, digest_size=8, person=b"streamssl label").digest()
    return int.from_bytes(digest, "little")
