"""Messages to and from a daemon of the release before, over ZeroMQ: version 1 of the protocol."""

from __future__ import annotations

import time
from typing import Any

import salt.utils.msgpack

from saltext.saltern.stream import Gone, Late, SpeaksZeroMQ, Stream

# How long to wait for an answer before looking whether the daemon is still there, in seconds.
_LOOK = 0.25


class OverZeroMQ:
    """A socket at the daemon, which ZeroMQ connects again and again."""

    protocol = 1

    def __init__(self, address: str) -> None:
        # Not above: it is there for old daemons only, and its import takes a while.
        import zmq

        self._address = address.replace("unix:", "ipc://", 1) if address.startswith("unix:") else address
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(self._address)

    def longest(self) -> int:
        """The longest message that the daemon takes, as far as is known."""
        return 1 << 32

    def send_packed(self, message: bytes, _until: float) -> None:
        """Sends a message."""
        self._socket.send(message)

    def receive(self, until: float) -> dict[str, Any]:
        """The next message of the daemon."""
        while True:
            left = until - time.monotonic()
            if left <= 0:
                raise Late()
            if self._socket.poll(min(left, _LOOK) * 1000):
                return salt.utils.msgpack.unpackb(self._socket.recv(), raw=False)
            self._look(until)

    def _look(self, until: float) -> None:
        """Raises if no such daemon listens: ZeroMQ itself would wait for one for ever."""
        try:
            Stream(self._address, None, min(until, time.monotonic() + _LOOK)).close()
        except SpeaksZeroMQ:
            return
        except (Late, Gone):
            # Somebody is there and busy.
            return
        # A newer daemon has taken its place.
        raise Gone()

    def close(self) -> None:
        """Lets go of it."""
        self._socket.close()
        self._context.term()
