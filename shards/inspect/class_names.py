"""Names of classes: `classes.txt` beside shards, one name a line, in the order of the numbers.

`streamssl shards pack` writes the file for folders of classes. Two packs number their classes each
for itself, so a number means a class only together with the file.
"""

import posixpath
from collections.abc import Sequence
from typing import Final

from shards.records import ShardInfo
from shards.samples.labels import Label
from shards.stores.range_reader import RangeReader

CLASSES_FILE: Final = "classes.txt"
# A larger file is no list of classes.
_MAX_BYTES: Final = 1 << 24


class ClassNames:
    """Names of the classes of the shards of a manifest. Raises ShardUnreadable."""

    def __init__(self, shards: Sequence[ShardInfo], reader: RangeReader) -> None:
        folders = [posixpath.dirname(shard.uri) for shard in shards]
        by_folder = {folder: _read(folder, reader) for folder in sorted(set(folders))}
        self._of_shard = [by_folder[folder] for folder in folders]
        self.lists = tuple(names for names in by_folder.values() if names)
        self.is_complete = all(by_folder.values())

    def name(self, shard: int, label: Label) -> Label:
        """Return the name of a class number of a shard; the label itself if it has none."""
        names = self._of_shard[shard]
        return names[label] if isinstance(label, int) and label < len(names) else label


def _read(folder: str, reader: RangeReader) -> tuple[str, ...]:
    uri = f"{folder}/{CLASSES_FILE}"
    listed = reader.stores.open(uri).look_up(uri)
    if listed is None or not 0 < (listed.num_bytes or 0) <= _MAX_BYTES:
        return ()
    info = ShardInfo(listed.uri, listed.num_bytes or 0, listed.version)
    text = reader.read(info, 0, info.num_bytes).decode("utf-8-sig", errors="replace")
    return tuple(text.splitlines())
