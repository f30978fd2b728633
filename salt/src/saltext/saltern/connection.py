"""One request at a time to the daemon, in whichever version of the protocol it speaks."""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import Any

import salt.utils.msgpack

from saltext.saltern.errors import Refused, Unavailable
from saltext.saltern.over_zeromq import OverZeroMQ
from saltext.saltern.stream import Gone, Late, SpeaksZeroMQ, Stream

# How long a daemon that has not answered in time, or has turned this process away, is left alone, in
# seconds. Salt makes several calls for a job, each of which would wait.
_PAUSE = 10.0


class Connection:
    """A way to the daemon, for one request at a time; threads wait for each other."""

    def __init__(self, address: str, token_file: str = "") -> None:
        self.address = address
        self._token_file = token_file
        self._lock = threading.Lock()
        self._link: Stream | OverZeroMQ | None = None
        self._requests = 0
        self._silent_until = 0.0
        # Why the daemon has turned this process away, until it takes it in.
        self._turned_away = ""

    def ask(self, op: str, timeout: float, patient: bool = False, **arguments: Any) -> Any:
        """The daemon's answer. With ``patient`` the time runs anew when the daemon says: wait."""
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise self._away(f"another thread has waited over {timeout:g} s for it")
        try:
            self._requests += 1
            request = {"id": self._requests, "op": op, **arguments}
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
            if self._turned_away:
                raise self._turn_away(self._turned_away)
            raise self._away(f"it has not answered; it is asked again after {_PAUSE:g} s")
        try:
            try:
                return self._once(request, deadline, timeout, patient)
            except Gone:
                # A daemon drops connections that are idle when others want in, and when it ends. All
                # that is asked may be asked again.
                self._close()
                return self._once(request, time.monotonic() + timeout, timeout, patient)
        except Gone:
            raise self._away("it has closed the connection") from None
        except Late:
            if not patient:
                self._turned_away = ""
                self._silent_until = time.monotonic() + _PAUSE
            raise self._away(f"no answer to `{request['op']}` within {timeout:g} s") from None
        except OSError as error:
            why = error.strerror or str(error)
            raise self._away(f"{why}; does it run, and is saltern.address right?") from None

    def _once(
        self, request: dict[str, Any], deadline: float, timeout: float, patient: bool
    ) -> Any:
        link = self._link = self._link or self._open(deadline)
        request = {"v": link.protocol, **request}
        message = salt.utils.msgpack.packb(request, use_bin_type=True)
        if len(message) > link.longest():
            raise Refused(
                f"saltern at {self.address}: a message of {len(message)} bytes is over max_frame "
                f"({link.longest()} bytes)"
            )
        link.send_packed(message, deadline)
        parts = []
        while True:
            answer = link.receive(deadline)
            # Number 0: the daemon gives up this connection.
            if answer["id"] != request["id"] and not (answer["id"] == 0 and "error" in answer):
                continue
            if answer.get("wait"):
                if patient:
                    deadline = time.monotonic() + timeout
                continue
            if "error" in answer:
                kind = Unavailable if answer.get("later") else Refused
                raise kind(f"saltern at {self.address}: {answer['error']}")
            if "part" in answer:
                parts.append(answer["part"])
                continue
            value = answer.get("value")
            return b"".join([*parts, value]) if parts else value

    def _open(self, deadline: float) -> Stream | OverZeroMQ:
        try:
            stream = Stream(self.address, self._token(), deadline)
        except SpeaksZeroMQ:
            return self._open_older()
        if "error" in stream.greeting:
            stream.close()
            raise self._turn_away(stream.greeting["error"])
        self._turned_away = ""
        return stream

    def _open_older(self) -> OverZeroMQ:
        try:
            return OverZeroMQ(self.address)
        except ImportError:
            raise self._turn_away(
                "it is older than this package and speaks ZeroMQ, for which pyzmq is missing here; "
                "upgrade saltern"
            ) from None

    def _token(self) -> bytes | None:
        if not self._token_file:
            return None
        try:
            with open(self._token_file, "rb") as file:
                if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o007:
                    why = "everybody may read it; chmod o= it and make a new token"
                    raise self._turn_away(f"saltern.token_file {self._token_file}: {why}")
                return file.read(4096).strip()
        except OSError as error:
            why = f"saltern.token_file {self._token_file}: {error.strerror}"
            raise self._turn_away(why) from None

    def _turn_away(self, why: str) -> Unavailable:
        """The same for a while, and told once."""
        error = self._away(why)
        error.is_told = why == self._turned_away
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _PAUSE
        self._turned_away = why
        return error

    def _close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def abandon(self) -> None:
        """Closes what this process has inherited; the parent goes on using it."""
        if isinstance(self._link, Stream):
            self._link.close()

    def _away(self, why: str) -> Unavailable:
        return Unavailable(f"saltern at {self.address}: {why}")
