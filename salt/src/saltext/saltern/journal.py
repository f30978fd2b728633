"""Events on their way to the daemon, in files: what it has not said to be safe outlives it and Salt."""

from __future__ import annotations

import collections
import logging
import os
import re
import struct
import sys
import threading
from typing import NamedTuple

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
_NAME = re.compile(r"[0-9]{16}\.events")
# A file of the journal goes as a whole, when all in it is safe or when there is no room for it.
_SEGMENT_BYTES = 1 << 20
_PART_EVENTS = 1000
_PART_BYTES = 1 << 20


class Segment:
    def __init__(self, path: str, size: int = 0, events: int = 0) -> None:
        self.path = path
        self.size = size
        self.events = events


class Part(NamedTuple):
    """Events that are sent together, and where in the journal they end."""

    bodies: list[bytes]
    segment: Segment
    end: int


class Journal:
    """Events in files of a folder, each behind its length. One process at a time may have it."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        import fcntl

        os.makedirs(folder, mode=0o700, exist_ok=True)
        # A lock of this kind is not inherited by a fork.
        self._lock_file = open(os.path.join(folder, "lock"), "a", encoding="utf-8")
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise OSError(error.errno, "another process has the journal", folder) from error
        self.folder = folder
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._segments: collections.deque[Segment] = collections.deque()
        for name in sorted(name for name in os.listdir(folder) if _NAME.fullmatch(name)):
            segment = Segment(os.path.join(folder, name))
            if not os.path.isfile(segment.path):
                continue
            segment.size = os.path.getsize(segment.path)
            bodies = _records(segment, 0, sys.maxsize, sys.maxsize).bodies
            segment.events = len(bodies)
            self._segments.append(segment)
            rest = segment.size - sum(_LENGTH.size + len(body) for body in bodies)
            if rest:
                log.warning(
                    "saltern: the last %d bytes of %s are no whole event and are not sent",
                    rest,
                    segment.path,
                )
        last = os.path.basename(self._segments[-1].path) if self._segments else "0."
        self._next = int(last.partition(".")[0]) + 1
        # What was written before may end in half a record, so nothing is appended to it.
        self._file = -1
        # How far the first segment is safe.
        self._safe = 0
        self._dropped = 0

    def append(self, bodies: list[bytes]) -> None:
        data = b"".join(part for body in bodies for part in (_LENGTH.pack(len(body)), body))
        with self._changed:
            if self._file < 0 or self._segments[-1].size >= _SEGMENT_BYTES:
                self._begin_segment()
            segment = self._segments[-1]
            try:
                if os.write(self._file, data) < len(data):
                    raise OSError("the disk is full")
            except OSError:
                os.ftruncate(self._file, segment.size)
                raise
            segment.size += len(data)
            segment.events += len(bodies)
            self._make_room()
            self._changed.notify()

    def _begin_segment(self) -> None:
        path = os.path.join(self.folder, f"{self._next:016}.events")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL
        file = os.open(path, flags, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._next += 1
        self._segments.append(Segment(path))

    def _make_room(self) -> None:
        while len(self._segments) > 1 and sum(s.size for s in self._segments) > self._max_bytes:
            lost = self._segments[0].events
            self._dropped += lost
            self._remove_first()
            log.error(
                "saltern: the journal %s is full (saltern.journal_bytes: %d); its oldest %d events "
                "are dropped, %d since Salt started",
                self.folder,
                self._max_bytes,
                lost,
                self._dropped,
            )

    def _remove_first(self) -> None:
        os.unlink(self._segments.popleft().path)
        self._safe = 0

    def wait(self) -> None:
        """Until there is something to send."""
        with self._changed:
            self._changed.wait_for(lambda: any(segment.size for segment in self._segments))

    def part(self) -> Part | None:
        """What is to be sent next; it stays until it is safe."""
        with self._changed:
            segment, begin = self._segments[0], self._safe
            # It cannot be removed while it is read.
            return _records(segment, begin, _PART_EVENTS, _PART_BYTES)

    def safe(self, part: Part) -> None:
        """The part need not be kept any longer."""
        with self._changed:
            if not self._segments or self._segments[0] is not part.segment:
                # There was no room for it.
                return
            if part.end < part.segment.size:
                self._safe = part.end
            elif len(self._segments) > 1 or self._file < 0:
                self._remove_first()
            else:
                os.ftruncate(self._file, 0)
                self._segments[0] = Segment(part.segment.path)
                self._safe = 0


def _records(segment: Segment, begin: int, max_events: int, max_bytes: int) -> Part:
    """Whole records from ``begin`` on; where only half a one follows, the segment ends."""
    bodies: list[bytes] = []
    at = begin
    with open(segment.path, "rb") as file:
        file.seek(begin)
        while len(bodies) < max_events and at - begin < max_bytes:
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            # Looked at before it is read: a damaged length would ask for gigabytes of memory.
            if not 0 < length <= segment.size - at - len(head):
                at = segment.size
                break
            bodies.append(file.read(length))
            at += len(head) + length
    return Part(bodies, segment, at)
