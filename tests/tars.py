"""Small tars, and the samples that `tarfile` reads from them; `wild_tars` builds unusual ones."""

import io
import tarfile


def make_tar(members: list[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Build a tar of these names and contents."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples_by_tarfile(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """Return (key, extension -> bytes) of every sample, read by the standard library."""
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
