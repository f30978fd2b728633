"""Sends what is in a journal, in order, for as long as it takes."""

from __future__ import annotations

import logging
import threading
import time

from saltext.saltern.connection import Connection, Refused
from saltext.saltern.journal import Journal

log = logging.getLogger(__name__)

# How long events may gather, so that one message takes several, and how long after a failure it is
# tried again, in seconds.
_GATHER = 0.02
_RETRY = 1.0


class Outbox:
    """A journal, and the thread that sends what is in it."""

    def __init__(self, journal: Journal, connection: Connection, timeout: float) -> None:
        self.journal = journal
        self._connection = connection
        self._timeout = timeout
        self._is_away = False
        # A daemon thread: Salt ends when it wants to, and the journal has what is not sent.
        threading.Thread(target=self._run, name="saltern-outbox", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.journal.wait()
            time.sleep(_GATHER)
            try:
                self._send()
            except Exception as error:  # pylint: disable=broad-except
                if not self._is_away:
                    self._is_away = True
                    log.error("%s; events wait in %s", error, self.journal.folder)
                time.sleep(_RETRY)

    def _send(self) -> None:
        part = self.journal.part()
        if part.bodies:
            try:
                self._connection.ask("events", self._timeout, patient=True, events=part.bodies)
            except Refused as error:
                log.error("%s; %d events are lost", error, len(part.bodies))
        self.journal.safe(part)
        if self._is_away:
            self._is_away = False
            log.info("saltern takes events again")
