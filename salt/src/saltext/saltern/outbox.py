"""Sends what is in a journal, in order, for as long as it takes."""

from __future__ import annotations

import logging
import threading
import time

from saltext.saltern.connection import Connection
from saltext.saltern.errors import Refused
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
        if part is None:
            return
        self._hand_over(part.bodies)
        self.journal.safe(part)
        if self._is_away:
            self._is_away = False
            log.info("saltern takes events again")

    def _hand_over(self, bodies: list[bytes]) -> None:
        """Of events that are refused, all are sent but those for which that is."""
        if not bodies:
            return
        try:
            self._connection.ask("events", self._timeout, patient=True, events=bodies)
        except Refused as error:
            if len(bodies) == 1:
                log.error("%s; an event is lost: %r", error, bodies[0][:200])
                return
            middle = len(bodies) // 2
            self._hand_over(bodies[:middle])
            self._hand_over(bodies[middle:])
