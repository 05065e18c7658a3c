"""Names of members: the key of the sample, the extension, and files that are no members.

Tools of macOS, Windows and network drives leave files of their own beside images; archives of such
folders contain them.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

KeyRule = Literal["first_dot", "last_dot"]
# What a user may ask for: "auto" takes the rule that the shards show.
Keys = Literal["auto", KeyRule]

# A name that begins with a dot, a file that an operating system leaves, or a file in its folder.
_HIDDEN: Final = re.compile(
    r"(^|/)(\._?[^/]*|thumbs\.db|ehthumbs[^/]*\.db|desktop\.ini|icon\r)$"
    r"|(^|/)(__macosx|@eadir|\$recycle\.bin|\.appledouble|\.trashes|\.fseventsd"
    r"|\.spotlight-v100|\.ipynb_checkpoints)/",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class NameRule:
    """Rule that assigns the members of a tar to samples.

    `keys`: a key ends at the first dot of the file name ('a/b.seg.png' is member 'seg.png' of
    'a/b', as in WebDataset), or at its last dot, for names with dots of their own. `keep_hidden`:
    hidden files are members; runs before version 0.3 took them so.
    """

    keys: KeyRule = "first_dot"
    keep_hidden: bool = False

    def split(self, name: str) -> tuple[str, str]:
        """Return key and extension: 'a/b.seg.PNG' -> ('a/b', 'seg.png')."""
        folder, slash, base = name.rpartition("/")
        if self.keys == "first_dot":
            stem, _, extension = base.partition(".")
        else:
            stem, dot, extension = base.rpartition(".")
            stem, extension = (stem, extension) if dot else (base, "")
        return folder + slash + stem, extension.lower()

    def leaves_out(self, name: str) -> bool:
        """Return True for the name of a hidden file, which is part of no sample."""
        return not self.keep_hidden and is_hidden(name)


WEBDATASET_NAMES: Final = NameRule()


def is_hidden(name: str) -> bool:
    """Return True for names such as '.DS_Store', 'a/._b.jpg', '__MACOSX/a.jpg', 'Thumbs.db'."""
    return _HIDDEN.search(name) is not None
