"""Detection of the rule by which names of members become keys, from the samples of a few chunks.

The rule of WebDataset, a key up to the first dot, joins images whose names contain dots: with
'1633024800.250000.png' and '1633024800.500000.png' only one of the two would ever be trained on.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

from shards.member_names import KeyRule, NameRule
from shards.records import Sample
from shards.samples.image_member import image_extension

# 'mask' of 'mask.png' is a kind of member; '250000' or '04.33' is a part of a name.
_ENDS_IN_NUMBER: Final = re.compile(r"(^|[._-])\d+[a-zA-Z]?$")
# Kinds of members are few, and each is in most samples; parts of names are many.
_MAX_KINDS: Final = 16
_MIN_MEMBERS: Final = 8
# Groups without an image of the other rule, up to which that rule is taken.
_MAX_WITHOUT_IMAGE: Final = 0.1


def detect_key_rule(samples: Sequence[Sample]) -> KeyRule:
    """Return the rule for samples that were cut by the rule "first_dot".

    "last_dot" is chosen only if member names are parts of names, more images become usable by it,
    and few members lose their image.
    """
    prefixes = Counter(
        extension.rpartition(".")[0]
        for sample in samples
        for extension in sample.fields
        if image_extension(extension) and "." in extension
    )
    if not prefixes or not _are_parts_of_names(prefixes):
        return "first_dot"
    by_last_dot = NameRule("last_dot")
    groups: dict[tuple[int, str], bool] = {}
    for number, sample in enumerate(samples):
        for extension in sample.fields:
            name = f"{sample.key}.{extension}" if extension else sample.key
            key, last = by_last_dot.split(name)
            place = (number, key)
            groups[place] = groups.get(place, False) or image_extension(last)
    num_images = sum(groups.values())
    before = sum(any(map(image_extension, sample.fields)) for sample in samples)
    is_better = num_images > before or len(samples) == num_images == before
    lost = len(groups) - num_images
    return "last_dot" if is_better and lost <= _MAX_WITHOUT_IMAGE * len(groups) else "first_dot"


def _are_parts_of_names(prefixes: Counter[str]) -> bool:
    num = prefixes.total()
    if any(_ENDS_IN_NUMBER.search(prefix) for prefix in prefixes):
        return True
    return len(prefixes) > _MAX_KINDS or (num >= _MIN_MEMBERS and 2 * len(prefixes) > num)


def join_names(names: Counter[str], max_names: int) -> str:
    """Return the most frequent names as words: 'cls, json and 3 more'."""
    shown = [name or "(no extension)" for name, _ in names.most_common(max_names)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
