"""Classes of a folder of images: the folders that hold the images, by name."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shards.errors import UserError

# Folders that divide a set for training and evaluation: 'train', 'val2017', 'test_images'.
_SPLIT: Final = re.compile(
    r"(train|training|trn|val|valid|validation|dev|eval|evaluation|test|tst|testing|holdout"
    r"|unlabell?ed|query|gallery)([-_ ]?(set|split|data|images|\d+))*",
    re.IGNORECASE,
)
_MAX_NAMES: Final = 6


@dataclass(frozen=True, slots=True)
class ClassFolders:
    """Class names, sorted, and the class of each image in the order of the images."""

    names: tuple[str, ...]
    of_image: Sequence[str]


def find_classes(images: Sequence[str]) -> ClassFolders | None:
    """Return the classes of images from their paths, relative to the folder that is packed.

    A folder that holds all images is no class. If all images are equally deep, the class is the
    whole path of their folder, shortened at its end where that merges no two classes; otherwise it
    is the first folder. The result is None without at least two classes, or if an image is in no
    class.
    """
    folders = [name.split("/")[:-1] for name in images]
    common = _common(folders)
    inner = [folder[len(common) :] for folder in folders]
    depths = set(map(len, inner))
    if not inner or 0 in depths:
        return None
    keys = {tuple(folder) for folder in inner}
    depth = 1
    if len(depths) == 1:
        depth = next(
            d for d in range(1, 1 + max(depths)) if len({k[:d] for k in keys}) == len(keys)
        )
    names = ["/".join(folder[:depth]) for folder in inner]
    return ClassFolders(tuple(sorted(set(names))), names)


def check_no_splits(root: str, images: Sequence[str]) -> None:
    """Raise UserError if the folders divide the images into splits, such as train and test."""
    folders = [name.split("/")[:-1] for name in images]
    common = _common(folders)
    inner = {tuple(folder[len(common) :]) for folder in folders}
    # Images beside the splits do not make them classes.
    for depth in range(max(1, min(map(len, inner), default=0))):
        names = sorted({folder[depth] for folder in inner if len(folder) > depth})
        if len(names) < 2 or not all(map(_SPLIT.fullmatch, names)):
            continue
        place = "/".join([root.rstrip("/"), *common])
        shown = ", ".join(names)
        if depth:
            raise UserError(
                f"the folders of {place} hold the splits {shown}; images of different splits must "
                "not be mixed in one set of labels: move each split into a folder of its own, or "
                f"pack all images without labels: `{_command(root)} --labels none`"
            )
        commands = " and ".join(f"`{_command(f'{place}/{name}', f'OUT-{name}')}`" for name in names)
        raise UserError(
            f"{place} holds the splits {shown}; images of different splits must not be mixed in "
            f"one set of labels: pack them apart with {commands}, or all images without labels: "
            f"`{_command(root)} --labels none`"
        )


def describe_classes(names: Sequence[str], origin: str) -> str:
    """Return one line: '8 classes: cat, dog, ... (sub-folders of x)'."""
    shown = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return f"{len(names):,} class{'' if len(names) == 1 else 'es'}: {shown} ({origin})"


def _command(source: str, out: str = "OUT") -> str:
    return shlex.join(["streamssl", "shards", "pack", source, out])


def _common(folders: Sequence[list[str]]) -> list[str]:
    """Return the path that all folders have in common."""
    first, last = min(folders, default=[]), max(folders, default=[])
    num = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:num]
