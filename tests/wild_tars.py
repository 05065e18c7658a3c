"""Random tars of every dialect, and the samples that `tarfile` finds in them.

`tarfile` writes only three dialects, without their rare features, so headers are built here.
"""

import io
import random
import tarfile
import warnings
from dataclasses import dataclass

BLOCK = 512
STYLES = ("ustar", "gnu", "pax", "v7", "base256", "pax_size", "sparse_gnu", "sparse_0.0",
          "sparse_0.1", "sparse_1.0")  # fmt: skip
_MARKS = {"ustar": b"ustar\x0000", "gnu": b"ustar  \0", "v7": b""}


@dataclass(frozen=True, kw_only=True)
class Wild:
    """A tar; `nested` if it may contain tars as members."""

    data: bytes
    nested: bool = False
    num_damaged: int = 0


def pad(data: bytes) -> bytes:
    """Pad `data` with zeros to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def header(name: bytes, size: int, kind: bytes = b"0", mark: str = "ustar", rest: bytes = b"",
           base256: bool = False) -> bytes:  # fmt: skip
    """Build one header block; `rest` fills its end."""
    number = b"\x80" + size.to_bytes(11, "big") if base256 else b"%011o\0" % size
    block = bytearray(BLOCK)
    block[0 : min(100, len(name))] = name[:100]
    block[100:124] = b"0000644\0" + b"0001750\0" + b"0001750\0"
    block[124:136] = number
    block[136:148] = b"%011o\0" % 1_700_000_000
    block[156:157] = kind
    block[257 : 257 + len(_MARKS[mark])] = _MARKS[mark]
    block[BLOCK - len(rest) :] = rest
    return with_checksum(bytes(block))


def with_checksum(block: bytes) -> bytes:
    """Return the header with its right checksum."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def pax(records: list[tuple[bytes, bytes]], kind: bytes = b"x") -> bytes:
    """Build a PAX header with these records."""
    data = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        data += b"%d %s=%s\n" % (length, key, value)
    return header(b"PaxHeaders.1/x", len(data), kind) + pad(data)


def long_link(name: bytes, kind: bytes = b"L") -> bytes:
    """Build the GNU header of a long name, or of a long link target."""
    return header(b"././@LongLink", len(name) + 1, kind, "gnu") + pad(name + b"\0")


def member(name: bytes, data: bytes, style: str, rng: random.Random) -> bytes:
    """Build a regular file in one of `STYLES`."""
    if style.startswith("sparse"):
        return _sparse(name, data, style, rng)
    if style in ("v7", "base256"):
        mark = "v7" if style == "v7" else "gnu"
        kind = rng.choice([b"\0", b"0"])
        head = header(name[:99], len(data), kind, mark, base256=style == "base256")
        return head + pad(data)
    if style == "ustar":
        return header(name[:100], len(data), rng.choice([b"0", b"7", b"\0"])) + pad(data)
    if style == "gnu":
        before = long_link(name) if len(name) > 100 or rng.random() < 0.1 else b""
        return before + header(name, len(data), mark="gnu") + pad(data)
    records = [(b"mtime", b"1700000000.5")] if rng.random() < 0.5 else []
    if style == "pax_size" or len(name) > 100 or rng.random() < 0.3:
        records.append((b"path", name))
    size = len(data)
    if style == "pax_size":
        records.append((b"size", b"%d" % size))
        size = 0
    return (pax(records) if records else b"") + header(name, size) + pad(data)


def _sparse(name: bytes, data: bytes, style: str, rng: random.Random) -> bytes:
    """Build a sparse file as GNU tar does."""
    pieces: list[tuple[int, int]] = []
    at = 0
    while at < len(data):
        length = min(len(data) - at, BLOCK * rng.randint(1, 4))
        if data[at : at + length].strip(b"\0"):
            pieces.append((at, length))
        at += length
    stored = b"".join(data[o : o + n] for o, n in pieces)
    numbers = [n for piece in pieces for n in piece]
    size = b"%d" % len(data)
    if style == "sparse_gnu":
        return _old_sparse(name, len(data), pieces) + pad(stored)
    if style == "sparse_0.0":
        records = [(b"GNU.sparse.size", size), (b"GNU.sparse.numblocks", b"%d" % len(pieces))]
        for offset, length in pieces:
            records += [(b"GNU.sparse.offset", b"%d" % offset)]
            records += [(b"GNU.sparse.numbytes", b"%d" % length)]
        return pax([*records, (b"path", name)]) + header(name, len(stored)) + pad(stored)
    records = [(b"GNU.sparse.name", name)]
    if style == "sparse_0.1":
        text = b",".join(b"%d" % n for n in numbers) or b"0,0"
        records += [(b"GNU.sparse.size", size), (b"GNU.sparse.map", text)]
    else:
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        records += [(b"GNU.sparse.realsize", size)]
        lines = b"".join(b"%d\n" % n for n in [len(pieces), *numbers])
        stored = pad(lines) + stored
    return pax(records) + header(b"GNUSparseFile.1/x", len(stored)) + pad(stored)


def _old_sparse(name: bytes, size: int, pieces: list[tuple[int, int]]) -> bytes:
    entries = [b"%011o\0%011o\0" % piece for piece in pieces]
    stored = sum(length for _, length in pieces)
    first, more = b"".join(entries[:4]).ljust(96, b"\0"), entries[4:]
    rest = first + bytes([bool(more)]) + b"%011o\0" % size
    before = long_link(name) if len(name) > 100 else b""
    out = before + header(name, stored, b"S", "gnu", rest.ljust(BLOCK - 386, b"\0"))
    while more:
        block, more = b"".join(more[:21]).ljust(504, b"\0"), more[21:]
        out += block + bytes([bool(more)]) + bytes(7)
    return out


def special(key: bytes, rng: random.Random) -> bytes:
    """Build a random member that is no regular file."""
    long = b"t" * 150
    return rng.choice(
        [
            header(key + b"-dir/", 0, b"5"),
            header(key + b"-dir", 4096, b"5"),
            header(key + b"-old-dir/", 0, b"\0", "v7"),
            header(key + b".jpg", 0, b"2"),
            header(key + b".jpg", 700, b"1"),
            long_link(long, b"K") + header(key + b".png", 0, b"2", "gnu"),
            pax([(b"linkpath", long), (b"path", key + b".link")]) + header(b"l", 0, b"2"),
            header(key + b"-pipe", 0, b"6"),
            header(key + b"-device", 0, b"3"),
            header(key + b"-disk", 0, b"4"),
            header(b"a volume", 0, b"V", "gnu"),
            header(b"unknown", 700, b"Z") + pad(b"u" * 700),
            pax([(b"comment", b"0123456789abcdef" * 3)], b"g"),
            pax([(b"SCHILY.xattr.user.note", b"x\n=" * 50)]) + header(key + b"-d/", 0, b"5"),
        ]
    )


def random_name(index: int, rng: random.Random) -> bytes:
    """Draw a key: dots in folders, prefixes, long names, other alphabets, invalid UTF-8."""
    folder = rng.choice([b"", b"", b"./", b"v1.0/a.b/", b"d/" * (index % 3), b"/abs/"])
    if rng.random() < 0.1:
        folder += rng.choice([b"x" * 120 + b"/", "é".encode() * 60, "長/".encode() * 40])
    base = rng.choice([b"%06d", b"%09d", b"img_%d", b"caf\xe9_%d"]) % index
    return folder + base


def random_data(rng: random.Random, nested: bool) -> bytes:
    """Draw the bytes of a member: none, few, many, with zeros, or a tar with bytes around it."""
    if nested and rng.random() < 0.3:
        before = rng.choice([b"", b"", rng.randbytes(rng.choice([100, 512, 1024, 6000]))])
        return before + inner_tar(rng) + rng.randbytes(rng.choice([0, 0, 100, 1024, 3000]))
    data = rng.randbytes(rng.choice([0, 1, 10, 511, 512, 513, 2000, 5000, 20000]))
    if data and rng.random() < 0.1:
        data += bytes(rng.choice([512, 3000])) + rng.randbytes(100)
    return data


def inner_tar(rng: random.Random) -> bytes:
    """Draw a tar for use as a member: short or long, whole, without its end, or truncated."""
    style = rng.choice(["ustar", "gnu", "pax", "v7"])
    many = rng.choice([3, 7, 8, 20, 60])
    parts = []
    for index in range(rng.randint(1, many)):
        name = rng.choice([b"inner%03d", b"%06d"]) % index
        parts.append(member(name + b".jpg", rng.randbytes(rng.choice([0, 700, 1500])), style, rng))
    data = b"".join(parts)
    if rng.random() < 0.2:
        return data[: rng.randrange(len(data))]
    return data + bytes(rng.choice([0, 512, 1024, 10240 - len(data) % 10240]))


def random_archive(rng: random.Random, nested: bool) -> bytes:
    """Draw samples of one to four members in any order, with other members between them."""
    styles = [rng.choice(STYLES[:4])] if rng.random() < 0.6 else rng.choices(STYLES, k=4)
    parts, names = [], []
    for index in range(rng.randint(1, rng.choice([3, 12, 40]))):
        repeated = names and rng.random() < 0.1
        name = rng.choice(names[-3:]) if repeated else random_name(index, rng)
        names.append(name)
        if rng.random() < 0.1:
            parts.append(special(name[:60], rng))
        extensions = rng.sample([b"jpg", b"JSON", b"txt", b"seg.png", b""], rng.randint(1, 4))
        for extension in extensions:
            full = name + b"." + extension if extension else name
            style = rng.choice(styles)
            if style in ("ustar", "v7", "base256") and len(full) > 99:
                full = full[-60:].lstrip(b"/")
            parts.append(member(full, random_data(rng, nested), style, rng))
    return b"".join(parts)


def wild_tar(seed: int, nested: bool = False) -> Wild:
    """Draw one or more concatenated archives with a random ending."""
    rng = random.Random(seed)
    ending = rng.choice(["end", "end", "none", "long", "junk"])
    data = b""
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        data += random_archive(rng, nested) + bytes(BLOCK * rng.choice([1, 2, 2, 20]))
    data += random_archive(rng, nested)
    if ending != "none":
        data += bytes(1024 if ending != "long" else rng.choice([10240, 100_000]))
    junk = b"\x07" + rng.randbytes(rng.choice([100, 511, 4000])) if ending == "junk" else b""
    return Wild(data=data + junk, nested=nested, num_damaged=int(bool(junk)))


@dataclass(frozen=True)
class Expected:
    """A sample as `tarfile` reads it: offsets of begin and end, and members."""

    offset: int
    end: int
    key: str
    fields: dict[str, bytes]


def expected_samples(data: bytes) -> list[Expected]:
    """Group the regular files of a tar into samples.

    Adjacent files with the same key are one sample, until an extension repeats. The key ends at the
    first dot of the file name.
    """
    found: list[Expected] = []
    with (
        warnings.catch_warnings(),
        tarfile.open(fileobj=io.BytesIO(data), ignore_zeros=True, errors="surrogateescape") as tar,
    ):
        for info in tar:
            if not info.isreg():
                continue
            folder, slash, base = info.name.rpartition("/")
            stem, _, extension = base.partition(".")
            key, extension = folder + slash + stem, extension.lower()
            file = tar.extractfile(info)
            assert file is not None
            if not found or found[-1].key != key or extension in found[-1].fields:
                found.append(Expected(info.offset, 0, key, {}))
            found[-1].fields[extension] = file.read()
            found[-1] = Expected(found[-1].offset, tar.offset, key, found[-1].fields)
    return found
