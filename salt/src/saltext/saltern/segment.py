"""
A file of the journal: how its records are written, and found again behind damage.

::

    head      twice, so that one damaged byte does not cost the file
        magic     4  "\\xc3sj" and the version of the format, 2
        key       8  random, another one in each file
        crc       4  CRC-32 of the 12 bytes before
    record
        marker    4  the first bytes of the key
        length    4  of the body
        crc       4  CRC-32 of the body, begun with that of the key and the length
        body

Minions write what is in the bodies. What they write cannot pass for a record where the file is damaged,
since they do not know its key. A file of version 1, ``NAME.events``, has no head, and of a record only
length and body: of these nothing is believed behind damage.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

_SEGMENT_MAGIC = b"\xc3sj\x02"
_SEGMENT_COPY = struct.Struct(">4s8sI")
_SEGMENT_HEAD_BYTES = 2 * _SEGMENT_COPY.size
_RECORD_HEAD = struct.Struct(">4sII")
_RECORD_LENGTH_1 = struct.Struct(">I")
# How much is read at a time to find a record behind damage.
_LOOK_BYTES = 1 << 16


class Found(NamedTuple):
    """The bodies of whole records, where they end, and how many bytes between them are none."""

    bodies: list[bytes]
    end: int
    damaged: int


class Segment:
    """What is known of such a file: how much of it is written, and how many events are in it."""

    def __init__(self, path: str, key: bytes | None, begin: int) -> None:
        self.path = path
        # Of version 1 there is none, and none either where both copies of the head are damaged.
        self._key = key
        # Where the records begin, and where they end.
        self.begin = begin
        self.size = begin
        self.events = 0
        # Whether its damage was logged.
        self.is_told = False
        if key is not None:
            self._marker = key[:4]
            self._seed = zlib.crc32(key)

    @classmethod
    def new(cls, path: str) -> Segment:
        """One that is about to be made."""
        return cls(path, os.urandom(8), _SEGMENT_HEAD_BYTES)

    @classmethod
    def existing(cls, path: str) -> Segment:
        """One that another process has written."""
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            key = None
            begin = 0
            if not path.endswith(".events"):
                head = file.read(_SEGMENT_HEAD_BYTES)
                begin = len(head)
                key = _key_of(head[: _SEGMENT_COPY.size]) or _key_of(head[_SEGMENT_COPY.size :])
        segment = cls(path, key, begin)
        segment.size = size
        return segment

    def emptied(self) -> Segment:
        """The same file without its records."""
        return Segment(self.path, self._key, self.begin)

    def has_records(self) -> bool:
        return self.size > self.begin

    def head(self) -> bytes:
        """What a new file begins with."""
        copy = _SEGMENT_MAGIC + self._key
        return 2 * (copy + zlib.crc32(copy).to_bytes(4, "big"))

    def packed(self, bodies: list[bytes]) -> bytes:
        """The events as records."""
        marker, seed, pack, crc32 = self._marker, self._seed, _RECORD_HEAD.pack, zlib.crc32
        parts = []
        for body in bodies:
            length = len(body)
            parts.append(pack(marker, length, crc32(body, seed ^ length)))
            parts.append(body)
        return b"".join(parts)

    def read(self, file: BinaryIO, begin: int, max_events: int, max_bytes: int) -> Found:
        """Whole records from ``begin`` on. What is between them is passed over."""
        if self.path.endswith(".events"):
            return self._read_version_1(file, begin, max_events, max_bytes)
        bodies: list[bytes] = []
        at, damaged = begin, 0
        file.seek(at)
        while at < self.size and len(bodies) < max_events and at - begin < max_bytes:
            body = self._body(file, at)
            if body is not None:
                bodies.append(body)
                at += _RECORD_HEAD.size + len(body)
                continue
            behind = self._next_marker(file, at + 1)
            damaged += behind - at
            at = behind
            file.seek(at)
        return Found(bodies, at, damaged)

    def _body(self, file: BinaryIO, at: int) -> bytes | None:
        """The body of the record here, where the file is, if there is one that is whole."""
        head = file.read(_RECORD_HEAD.size)
        if self._key is None or len(head) < _RECORD_HEAD.size:
            return None
        marker, length, crc = _RECORD_HEAD.unpack(head)
        # Looked at before it is read: a damaged length would ask for gigabytes of memory.
        if marker != self._marker or not 0 < length <= self.size - at - len(head):
            return None
        body = file.read(length)
        return body if zlib.crc32(body, self._seed ^ length) == crc else None

    def _next_marker(self, file: BinaryIO, at: int) -> int:
        """Where a record may begin; the end if nowhere."""
        while self._key is not None and at < self.size:
            file.seek(at)
            block = file.read(_LOOK_BYTES)
            found = block.find(self._marker)
            if found >= 0:
                return min(at + found, self.size)
            if len(block) < _LOOK_BYTES:
                break
            # A marker may begin in this block and end in the next.
            at += len(block) - len(self._marker) + 1
        return self.size

    def _read_version_1(
        self, file: BinaryIO, begin: int, max_events: int, max_bytes: int
    ) -> Found:
        bodies: list[bytes] = []
        at = begin
        file.seek(begin)
        while at < self.size and len(bodies) < max_events and at - begin < max_bytes:
            head = file.read(_RECORD_LENGTH_1.size)
            length = _RECORD_LENGTH_1.unpack(head)[0] if len(head) == _RECORD_LENGTH_1.size else 0
            if not 0 < length <= self.size - at - len(head):
                return Found(bodies, self.size, self.size - at)
            bodies.append(file.read(length))
            at += len(head) + length
        return Found(bodies, at, 0)


def _key_of(copy: bytes) -> bytes | None:
    if len(copy) < _SEGMENT_COPY.size:
        return None
    magic, key, crc = _SEGMENT_COPY.unpack(copy)
    return key if magic == _SEGMENT_MAGIC and zlib.crc32(copy[:-4]) == crc else None
