"""Random tars of every kind, and what Python's own `tarfile` says is in them."""

import io
import random
import tarfile

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
SIZES = (0, 10, 511, 512, 513, 5000, 40000)


def make_tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar of these names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def random_tar(seed: int, nested: bool = False) -> bytes:
    """A tar of up to 60 samples of one to three members, in one of three formats; folders, long
    and non-ASCII names, empty members, folders and links in between, and tars inside the tar."""
    rng = random.Random(seed)
    form = FORMATS[seed % 3]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for index in range(rng.randint(1, 60)):
            key = f"{'d/' * (index % 3)}{index:06d}" + _long_part(rng, form)
            if rng.random() < 0.05:
                _add_special(tar, rng, key)
            for extension in rng.sample(["jpg", "json", "txt", "seg.png"], rng.randint(1, 3)):
                data = rng.randbytes(rng.choice(SIZES))
                if nested and rng.random() < 0.2:
                    data = _inner_tar(rng) + rng.randbytes(rng.randint(0, 3000))
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples_by_tarfile(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """(key, extension -> bytes) of every sample, read by the standard library."""
    found: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True) as tar:
        for member in tar:
            if not member.isreg():
                continue
            folder, slash, base = member.name.rpartition("/")
            stem, _, extension = base.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            key = folder + slash + stem
            if not found or found[-1][0] != key or extension.lower() in found[-1][1]:
                found.append((key, {}))
            found[-1][1][extension.lower()] = file.read()
    return found


def _long_part(rng: random.Random, form: int) -> str:
    if rng.random() > 0.1 or form == tarfile.USTAR_FORMAT:
        return ""
    return rng.choice(["x" * 120, "é" * 60, "長" * 40])


def _add_special(tar: tarfile.TarFile, rng: random.Random, key: str) -> None:
    info = tarfile.TarInfo(f"{key}-special")
    info.type = rng.choice([tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
    info.linkname = "" if info.isdir() else "elsewhere.jpg"
    tar.addfile(info)


def _inner_tar(rng: random.Random) -> bytes:
    return make_tar([(f"inner{index}.jpg", bytes(700)) for index in range(rng.randint(1, 6))])
