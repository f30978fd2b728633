"""Events on their way to the daemon, in files: what it has not said to be safe outlives it and Salt."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import re
import sys
import threading
from typing import BinaryIO, NamedTuple, TextIO

from saltext.saltern.segment import Found, Segment

log = logging.getLogger(__name__)

# Version 1 of the files is `.events`. An older package leaves the others alone.
# Nobody reaches a number that begins with 9: such a name is not ours, and none comes behind it.
_NAME = re.compile(r"[0-8][0-9]{15}\.events2?")
# A file of the journal goes as a whole, when all in it is safe or when there is no room for it.
_SEGMENT_BYTES = 1 << 20
_PART_EVENTS = 1000
_PART_BYTES = 1 << 20


class Part(NamedTuple):
    """Events that are sent together, and where in the journal they end."""

    bodies: list[bytes]
    segment: Segment
    end: int


class Journal:
    """
    Events in files of a folder. One process at a time may have it. What is damaged is passed over, and
    where the folder is removed it is made anew with what is still open: nothing of that stops Salt.
    """

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._segments: collections.deque[Segment] = collections.deque()
        # What was written before may end in half a record, so nothing is appended to it.
        self._file = -1
        # How far the first segment is safe; 0 is before its head.
        self._safe = 0
        self._dropped = 0
        self._lock_file = _locked(folder)
        # Events that are lost because their bytes are damaged cannot be counted, but the bytes can.
        self.damaged_bytes = 0
        names = [name for name in os.listdir(folder) if _NAME.fullmatch(name)]
        self._next = 1 + max((int(name.partition(".")[0]) for name in names), default=0)
        for name in sorted(names):
            path = os.path.join(folder, name)
            if not os.path.isfile(path):
                continue
            try:
                segment = Segment.existing(path)
                with open(path, "rb", opener=_opened) as file:
                    found = segment.read(file, segment.begin, sys.maxsize, sys.maxsize)
            except OSError as error:
                log.warning("saltern: cannot read %s, whose events wait there: %s", path, error)
                continue
            segment.events = len(found.bodies)
            self._tell_damage(segment, found)
            segment.is_told = True
            self._segments.append(segment)

    def append(self, bodies: list[bytes]) -> None:
        with self._changed:
            if self._file < 0 or self._segments[-1].size >= _SEGMENT_BYTES:
                self._begin_segment()
            elif os.fstat(self._file).st_nlink == 0:
                self._renew()
            segment = self._segments[-1]
            data = segment.packed(bodies)
            try:
                _write(self._file, data)
            except OSError:
                os.ftruncate(self._file, segment.size)
                raise
            segment.size += len(data)
            segment.events += len(bodies)
            self._make_room()
            self._changed.notify()

    def _begin_segment(self) -> None:
        segment, file = self._created()
        if self._file >= 0:
            os.close(self._file)
        self._file = file
        self._segments.append(segment)

    def _created(self, content: bytes = b"") -> tuple[Segment, int]:
        """A new file with this content, or with a head alone."""
        while True:
            segment = Segment.new(os.path.join(self.folder, f"{self._next:016}.events2"))
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._next += 1
            try:
                file = os.open(segment.path, flags, 0o600)
                break
            except FileExistsError:
                # Somebody else's.
                continue
            except FileNotFoundError:
                self._lock_anew()
        try:
            _write(file, content or segment.head())
        except OSError:
            os.close(file)
            os.unlink(segment.path)
            raise
        return segment, file

    def _lock_anew(self) -> None:
        """The folder was removed, or what is in it."""
        lock_file = _locked(self.folder)
        self._lock_file.close()
        self._lock_file = lock_file

    def _renew(self) -> None:
        """The file that is written was removed. What is in it is not lost while it is open."""
        if os.fstat(self._lock_file.fileno()).st_nlink == 0:
            self._lock_anew()
        last = self._segments[-1]
        made, file = self._created(os.pread(self._file, last.size, 0))
        os.close(self._file)
        self._file = file
        last.path = made.path
        log.error(
            "saltern: the journal %s was removed; it is made anew with %d events that wait",
            self.folder,
            last.events,
        )

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
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._segments[0].path)
        self._segments.popleft()
        self._safe = 0

    def _tell_damage(self, segment: Segment, found: Found) -> None:
        if not found.damaged or segment.is_told:
            return
        segment.is_told = True
        self.damaged_bytes += found.damaged
        log.warning(
            "saltern: %d bytes of %s are no whole event and are not sent", found.damaged, segment.path
        )

    def is_empty(self) -> bool:
        with self._changed:
            return not any(segment.has_records() for segment in self._segments)

    def wait(self) -> None:
        """Until there is something to send."""
        with self._changed:
            self._changed.wait_for(lambda: any(s.has_records() for s in self._segments))

    def part(self) -> Part | None:
        """What is to be sent next; it stays until it is safe. Nothing if what there was is gone."""
        with self._changed:
            while self._segments:
                segment = self._segments[0]
                begin = max(self._safe, segment.begin)
                try:
                    # It cannot be removed by this process while it is read.
                    with self._opened(segment) as file:
                        found = segment.read(file, begin, _PART_EVENTS, _PART_BYTES)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EIO) or self._is_written(segment):
                        raise
                    self._leave_out(segment, error)
                    continue
                self._tell_damage(segment, found)
                return Part(found.bodies, segment, found.end)
            return None

    def _is_written(self, segment: Segment) -> bool:
        return self._file >= 0 and segment is self._segments[-1]

    def _opened(self, segment: Segment) -> BinaryIO:
        if not self._is_written(segment):
            return open(segment.path, "rb", opener=_opened)
        if not os.path.exists(segment.path):
            self._renew()
        return os.fdopen(os.dup(self._file), "rb")

    def _leave_out(self, segment: Segment, error: OSError) -> None:
        self._dropped += segment.events
        self._segments.popleft()
        self._safe = 0
        log.error(
            "saltern: cannot read %s (%s); its %d events are dropped, %d since Salt started",
            segment.path,
            error,
            segment.events,
            self._dropped,
        )

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
                os.ftruncate(self._file, part.segment.begin)
                self._segments[0] = part.segment.emptied()
                self._safe = 0


def _opened(path: str, flags: int) -> int:
    """Opens a file of the folder. Neither a link nor a FIFO in its place leads or holds us anywhere."""
    more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | more, 0o600)


def _locked(folder: str) -> TextIO:
    """The lock of the folder, which is made if it is not there."""
    # Not at the top: a minion of another system has the package as well.
    import fcntl

    os.makedirs(folder, mode=0o700, exist_ok=True)
    # A lock of this kind is not inherited by a fork.
    file = open(os.path.join(folder, "lock"), "a", encoding="utf-8", opener=_opened)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise OSError(error.errno, "another process has the journal", folder) from error
    return file


def _write(file: int, data: bytes) -> None:
    if os.write(file, data) < len(data):
        raise OSError(errno.ENOSPC, "the disk is full")
