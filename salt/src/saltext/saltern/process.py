"""What there is one of in a process: a connection to a daemon, and an outbox in a folder."""

from __future__ import annotations

import os
import sys
import threading
import types

from saltext.saltern.connection import Connection
from saltext.saltern.journal import Journal
from saltext.saltern.outbox import Outbox


class Process(types.ModuleType):
    """A module that nobody imports. It stays where Salt's loaders execute a returner again and again."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._inherited: list[object] = []
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._connections: dict[str, Connection] = {}
        self._outboxes: dict[str, Outbox] = {}

    def _forget(self) -> None:
        # Kept, so that nothing of the parent's is closed by its child.
        self._inherited.append((self._connections, self._outboxes))
        self._begin()

    @classmethod
    def this(cls) -> Process:
        """That of this process."""
        name = "_saltext_saltern_process"
        made = cls(name)
        process = sys.modules.setdefault(name, made)
        if process is made:
            os.register_at_fork(after_in_child=made._forget)
        return process

    def connection(self, address: str) -> Connection:
        """For the calls that wait for their answers."""
        with self._lock:
            return self._connections.setdefault(address, Connection(address))

    def outbox(self, folder: str, journal_bytes: int, address: str, timeout: float) -> Outbox:
        """For events. Its connection is its own, since its answers take as long as they take."""
        with self._lock:
            if folder not in self._outboxes:
                journal = Journal(folder, journal_bytes)
                self._outboxes[folder] = Outbox(journal, Connection(address), timeout)
            return self._outboxes[folder]
