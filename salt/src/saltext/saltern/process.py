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
        self._connections: dict[tuple[str, str], Connection] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._made: list[Connection] = []

    def _forget(self) -> None:
        # Closing a socket in a child leaves it open in the parent. All else is kept, so that nothing
        # of the parent's is ended by its child.
        for connection in self._made:
            connection.abandon()
        self._inherited.append((self._connections, self._outboxes))
        self._begin()

    @classmethod
    def this(cls) -> Process:
        """That of this process."""
        # Not the name of the releases before, whose connections speak another protocol.
        name = "_saltext_saltern_process_2"
        made = cls(name)
        process = sys.modules.setdefault(name, made)
        if process is made:
            os.register_at_fork(after_in_child=made._forget)
        return process

    def connection(self, address: str, token_file: str = "") -> Connection:
        """For the calls that wait for their answers."""
        with self._lock:
            key = address, token_file
            if key not in self._connections:
                self._connections[key] = self._make(address, token_file)
            return self._connections[key]

    def outbox(
        self, folder: str, journal_bytes: int, address: str, timeout: float, token_file: str = ""
    ) -> Outbox:
        """For events. Its connection is its own, since its answers take as long as they take."""
        with self._lock:
            if folder not in self._outboxes:
                journal = Journal(folder, journal_bytes)
                connection = self._make(address, token_file)
                self._outboxes[folder] = Outbox(journal, connection, timeout)
            return self._outboxes[folder]

    def _make(self, address: str, token_file: str) -> Connection:
        connection = Connection(address, token_file)
        self._made.append(connection)
        return connection
