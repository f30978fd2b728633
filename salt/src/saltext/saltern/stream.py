"""
Messages to and from the daemon over a stream socket, version 2 of the protocol: 4 bytes of length,
big-endian, and a msgpack map. ``docs/returner.md`` draws it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import Any

import salt.utils.msgpack

_PREFIX = struct.Struct(">I")
# The process, user and group of a peer: ``struct ucred`` of unix(7).
_PEER = struct.Struct("3i")
# How the greeting of ZeroMQ begins. No length does that the daemon announces.
_ZEROMQ = 0xFF
# How long to leave a daemon alone whose queue of connections is full, in seconds.
_FULL = 0.05


# The longest message that a daemon sends: long answers come in parts, which are far shorter.
_LONGEST = 16 << 20


class Gone(Exception):
    """The daemon has closed the connection."""


class Late(Exception):
    """The daemon has said nothing within the time."""


class SpeaksZeroMQ(Exception):
    """The daemon is an older one."""


def place_of(address: str) -> tuple[int, Any]:
    """The family of an address and what ``connect`` takes."""
    for scheme in ("ipc://", "unix:"):
        if address.startswith(scheme):
            return socket.AF_UNIX, address[len(scheme) :]
    host, _, port = address.partition("://")[2].rpartition(":")
    host = host.strip("[]")
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))


class Stream:
    """A connection that is made, and has been greeted."""

    protocol = 2

    def __init__(self, address: str, token: bytes | None, until: float) -> None:
        self._received = bytearray()
        self._socket = self._connected(address, until)
        try:
            self.greeting = self.receive(until)
            if token is not None and "error" not in self.greeting:
                self.send({"v": self.protocol, "id": 0, "op": "hello", "token": token}, until)
                self.greeting = {**self.greeting, **self.receive(until)}
        except BaseException:
            self.close()
            raise

    @staticmethod
    def _connected(address: str, until: float) -> socket.socket:
        family, place = place_of(address)
        while True:
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.settimeout(_left(until))
                made.connect(place)
                if family == socket.AF_UNIX:
                    _refuse_impostor(made, place)
                return made
            except BlockingIOError:
                # Of a unix socket: somebody listens, and takes nobody in now.
                made.close()
                time.sleep(min(_FULL, _left(until)))
            except socket.timeout:
                made.close()
                raise Late() from None
            except BaseException:
                made.close()
                raise

    def longest(self) -> int:
        """The longest message that the daemon takes."""
        return self.greeting.get("max_frame", 1 << 32)

    def send(self, request: dict[str, Any], until: float) -> None:
        """Sends a request, as ``pack`` has packed it or to be packed."""
        self.send_packed(salt.utils.msgpack.packb(request, use_bin_type=True), until)

    def send_packed(self, message: bytes, until: float) -> None:
        """Sends a message. What the daemon says before it closes can be received after a failure."""
        try:
            self._socket.settimeout(_left(until))
            self._socket.sendall(_PREFIX.pack(len(message)) + message)
        except socket.timeout:
            raise Late() from None
        except (BrokenPipeError, ConnectionResetError):
            # It may have said why.
            pass

    def receive(self, until: float) -> dict[str, Any]:
        """The next message of the daemon."""
        received = self._received
        while True:
            if received and received[0] == _ZEROMQ:
                raise SpeaksZeroMQ()
            if len(received) >= _PREFIX.size:
                end = _PREFIX.size + _PREFIX.unpack_from(received)[0]
                if end > _LONGEST:
                    raise Gone()
                if len(received) >= end:
                    message = bytes(received[_PREFIX.size : end])
                    del received[:end]
                    return salt.utils.msgpack.unpackb(message, raw=False)
            try:
                self._socket.settimeout(_left(until))
                more = self._socket.recv(1 << 18)
            except socket.timeout:
                raise Late() from None
            except ConnectionResetError:
                more = b""
            if not more:
                raise Gone()
            received += more

    def close(self) -> None:
        """Lets go of it in this process. Another one that has inherited it is not disturbed."""
        self._socket.close()


def _refuse_impostor(made: socket.socket, place: str) -> None:
    """Where everybody can put a socket, only root and this user are believed to be the daemon."""
    if not os.stat(os.path.dirname(place) or ".").st_mode & 0o002:
        return
    _, user, _ = _PEER.unpack(made.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if user not in (0, os.geteuid()):
        why = f"user {user} listens in a directory that everybody can write"
        raise PermissionError(errno.EPERM, why)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise Late()
    return left
