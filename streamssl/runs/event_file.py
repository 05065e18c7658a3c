"""EventFile: scalars for TensorBoard, written without it.

An event file is a row of records: length, checksum of it, an `Event` in protocol buffers, checksum
of that (TensorFlow's TFRecord; checksums are CRC-32C, turned and offset). The few fields that a
scalar needs are written by hand: the library that has them all takes seconds to import.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_VERSION: Final = b"brain.Event:2"
_MASK: Final = 0xA282EAD8


def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli) of every byte."""
    found = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return tuple(found)


_TABLE: Final = _table()


class EventFile:
    """Appends to a new event file in `folder`. Each step is on disk when `write` returns."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._append(_field(3, _VERSION))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """The scalars of a step, by name."""
        values = b"".join(
            _field(1, _field(1, name.encode()) + b"\x15" + struct.pack("<f", value))
            for name, value in scalars.items()
        )
        self._append(b"\x10" + _varint(step) + _field(5, values))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))
        self._file.flush()


def scalars_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """What a chart can be made of, from a line of metrics.jsonl."""
    seconds = fields["step_seconds"] + fields["data_wait_seconds"]
    return {
        "loss": fields["loss"],
        "learning_rate": fields["lr"],
        "images_per_second": fields["num_samples"] / seconds if seconds else 0.0,
        "data_wait_share": fields["data_wait_seconds"] / seconds if seconds else 0.0,
        "rejects": fields["num_rejects"],
        **{f"readings/{name}": value for name, value in fields["readings"].items()},
    }


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes of a protocol buffer."""
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)
