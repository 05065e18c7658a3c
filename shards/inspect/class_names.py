"""Names of classes: `classes.txt` beside shards, one name a line, in the order of the numbers.

`streamssl shards pack` writes the file for folders of classes. Two packs number their classes each
for itself, so a number means a class only together with the file.
"""

import posixpath
from collections.abc import Sequence
from typing import Final

from shards.records import ShardInfo
from shards.samples.class_numbers import CLASSES_FILE, ClassNumbers, join_classes
from shards.samples.labels import Label
from shards.stores.range_reader import RangeReader

# A larger file is no list of classes.
_MAX_BYTES: Final = 1 << 24


class ClassNames:
    """Names of the classes of the shards of a manifest. Raises ShardUnreadable."""

    def __init__(self, shards: Sequence[ShardInfo], reader: RangeReader) -> None:
        folders = [posixpath.dirname(shard.uri) for shard in shards]
        self._by_folder = {folder: _read(folder, reader) for folder in dict.fromkeys(folders)}
        self._folders = folders

    def name(self, shard: int, label: Label) -> Label:
        """Return the name of a class number of a shard; the label itself if it has none."""
        names = self._by_folder[self._folders[shard]]
        return names[label] if isinstance(label, int) and label < len(names) else label

    def numbers(self) -> ClassNumbers | None:
        """Return the class numbers of a run over all shards; None if no folder has names."""
        lists = list(dict.fromkeys(self._by_folder.values()))
        if not any(lists):
            return None
        places = {names: place for place, names in enumerate(lists)}
        return join_classes(lists, [places[self._by_folder[folder]] for folder in self._folders])

    @property
    def unnamed(self) -> list[str]:
        """Folders without names, if others have them."""
        return [folder for folder, names in self._by_folder.items() if not names]


def _read(folder: str, reader: RangeReader) -> tuple[str, ...]:
    uri = f"{folder}/{CLASSES_FILE}"
    listed = reader.stores.open(uri).look_up(uri)
    if listed is None or not 0 < (listed.num_bytes or 0) <= _MAX_BYTES:
        return ()
    info = ShardInfo(listed.uri, listed.num_bytes or 0, listed.version)
    text = reader.read(info, 0, info.num_bytes).decode("utf-8-sig", errors="replace")
    return tuple(text.splitlines())
