"""TensorBoard reads what is written for it."""

import struct
from pathlib import Path

from streamssl.pretrain.run import Placement
from streamssl.runs.event_file import EventFile, _checksum, scalars_of
from tests.tinyrun import read_log, tiny_swav, train_here


def records(path: Path) -> list[bytes]:
    """The events of a file, their checksums held."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == _checksum(data[:8])
        event, data = data[12 : 12 + length], data[12 + length :]
        assert data[:4] == _checksum(event)
        found.append(event)
        data = data[4:]
    return found


def test_the_checksum_is_that_of_the_format() -> None:
    """RFC 3720, B.4: CRC-32C of 32 bytes of zeros is 0x8a9136aa; the format turns it by 15 bits."""
    turned = (0x8A9136AA >> 15 | 0x8A9136AA << 17) + 0xA282EAD8
    assert _checksum(bytes(32)) == struct.pack("<I", turned & 0xFFFFFFFF)


def test_a_step_is_one_record_of_named_floats(tmp_path: Path) -> None:
    """Byte by byte: time, step 300, and a value with its name."""
    file = EventFile(tmp_path / "events")
    file.write(300, {"loss": 0.5})
    file.close()
    [path] = (tmp_path / "events").iterdir()
    version, step = records(path)
    assert version[9:] == b"\x1a\x0dbrain.Event:2"
    assert step[:1] == b"\x09" and step[9:12] == b"\x10\xac\x02"
    assert step[12:] == b"\x2a\x0d\x0a\x0b\x0a\x04loss\x15" + struct.pack("<f", 0.5)


def test_a_run_writes_its_steps_if_it_is_asked_to(shards_folder: Path, tmp_path: Path) -> None:
    """All of them, each once, with every reading; without --tensorboard nothing is written."""
    out = tmp_path / "run"
    train_here(tiny_swav(), shards_folder, out, placement=Placement(readers=1, tensorboard=True))
    [path] = (out / "tensorboard").iterdir()
    steps = records(path)[1:]
    assert len(steps) == 6
    for fields, step in zip(read_log(out), steps, strict=True):
        for name, value in scalars_of(fields).items():
            assert name.encode() + b"\x15" + struct.pack("<f", value) in step
    plain = tmp_path / "plain"
    train_here(tiny_swav(num_steps=1), shards_folder, plain)
    assert not (plain / "tensorboard").exists()
