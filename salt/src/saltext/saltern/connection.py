"""One request at a time to the daemon, over ZeroMQ. ``docs/returner.md`` draws the protocol."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import salt.utils.msgpack
from salt.exceptions import CommandExecutionError

PROTOCOL = 1
# How long to wait for an answer before looking whether the daemon is still there, in seconds.
_LOOK = 0.25
# How long a daemon that has not answered in time is left alone, in seconds. Salt makes several calls
# for a job, each of which would wait.
_PAUSE = 10.0


class Unavailable(CommandExecutionError):
    """The daemon did not do what it was asked, and may do it later."""


class Refused(CommandExecutionError):
    """The daemon will never do what it was asked."""


class Connection:
    """A socket at the daemon, for one request at a time; threads wait for each other."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._context: Any = None
        self._socket: Any = None
        self._requests = 0
        self._silent_until = 0.0

    def ask(self, op: str, timeout: float, patient: bool = False, **arguments: Any) -> Any:
        """The daemon's answer. With ``patient`` the time runs anew when the daemon says: wait."""
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise self._away(f"another thread has waited over {timeout:g} s for it")
        try:
            self._requests += 1
            request = {"v": PROTOCOL, "id": self._requests, "op": op, **arguments}
            return self._exchange(request, deadline, timeout, patient)
        except BaseException:
            # What is under way belongs to nobody any more.
            self._close()
            raise
        finally:
            self._lock.release()

    def _exchange(
        self, request: dict[str, Any], deadline: float, timeout: float, patient: bool
    ) -> Any:
        if time.monotonic() < self._silent_until:
            raise self._away(f"it has not answered; it is asked again after {_PAUSE:g} s")
        message = salt.utils.msgpack.packb(request, use_bin_type=True)
        if self._socket is None:
            self._look()
            self._open()
        self._socket.send(message)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                self._silent_until = time.monotonic() + (0 if patient else _PAUSE)
                raise self._away(f"no answer to `{request['op']}` within {timeout:g} s")
            if not self._socket.poll(min(left, _LOOK) * 1000):
                self._look()
                continue
            answer = salt.utils.msgpack.unpackb(self._socket.recv(), raw=False)
            if answer["id"] != request["id"]:
                continue
            if answer.get("wait"):
                if patient:
                    deadline = time.monotonic() + timeout
                continue
            if "error" in answer:
                kind = Unavailable if answer.get("later") else Refused
                raise kind(f"saltern at {self.address}: {answer['error']}")
            return answer.get("value")

    def _open(self) -> None:
        # Where Salt only imports this module, ZeroMQ's milliseconds would be for nothing.
        import zmq

        self._context = self._context or zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(self.address)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _look(self) -> None:
        """Raises if nobody listens: ZeroMQ itself would wait for somebody for ever."""
        scheme, _, place = self.address.partition("://")
        if scheme == "ipc":
            probe, target = socket.socket(socket.AF_UNIX), place
        else:
            host, _, port = place.rpartition(":")
            host = host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            probe, target = socket.socket(family), (host, int(port))
        with probe:
            probe.settimeout(_LOOK)
            try:
                probe.connect(target)
            except (FileNotFoundError, ConnectionRefusedError, PermissionError) as error:
                raise self._away(f"{error.strerror}; does it run, and is saltern.address right?")
            except OSError:
                # Somebody is there and busy.
                pass

    def _away(self, why: str) -> Unavailable:
        return Unavailable(f"saltern at {self.address}: {why}")
