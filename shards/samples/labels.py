"""Labels of samples as whole numbers, for methods that learn from labels.

The label named `cls` is the member `cls`, or else field `cls` of the JSON member. Whole numbers
from 0 to 2^31 are taken as they are. Any other text becomes a number above that, a hash of its
bytes, so equal words are equal everywhere. From a list, such as hashtags, each
epoch draws one entry.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shards.records import Sample
from shards.samples.metadata import MetadataError, read_metadata

NO_LABEL: Final = -1
_FIRST_HASH: Final = 1 << 31


def read_labels(samples: Sequence[Sample], name: str, epoch: int) -> NDArray[np.int64]:
    """Return the labels (N,) of samples in `epoch`; `NO_LABEL` for samples without one."""
    return np.array([read_label(sample, name, epoch) for sample in samples], dtype=np.int64)


def read_label(sample: Sample, name: str, epoch: int) -> int:
    """Return the label of one sample in `epoch`, or `NO_LABEL`."""
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
    if text.isascii() and text.isdigit() and int(text) < _FIRST_HASH:
        return int(text)
    if not text:
        return NO_LABEL
    digest = blake2b(text.encode(), digest_size=8, person=b"streamssl label").digest()
    return max(int.from_bytes(digest, "little") >> 1, _FIRST_HASH)


def _draw(sample: Sample, epoch: int) -> int:
    key = np.array([epoch, sample.shard, sample.offset], dtype="<i8").tobytes()
    digest = blake2b(key, digest_size=8, person=b"streamssl label").digest()
    return int.from_bytes(digest, "little")
