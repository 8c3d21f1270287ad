"""Connect the ranks for their heartbeats: every rank to rank 0, each side sure of the other.

Any program that reaches the port may connect. So both sides show a secret that they have agreed over the process group, no
connection is waited for while others are open, and the only process ids that a watchdog may end are those exchanged here.
"""

import hmac
import os
import secrets
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from bigcircuit.distributed.launcher_env import ranks_on_this_host
from bigcircuit.errors import UserError

_TIMEOUT, _HELLO_TIMEOUT = 60.0, 10.0
"""Seconds until all ranks have to be connected, and from a connection to its hello."""
_SECRET_BITS = 62
"""Bits of each side's secret: what a number of the process group holds."""
_HELLO_BYTES = 44


class Connection(NamedTuple):
    """Connection to another rank."""

    socket: socket.socket
    pid: int
    """Process id of the other rank, as that rank sees it."""


class _Hello(NamedTuple):
    """First message of either side."""

    rank: int
    pid: int
    secret: int

    def encode(self) -> bytes:
        """Return the message as bytes, of the same length whatever the numbers."""
        return f"{self.rank:12d}{self.pid:12d}{self.secret:20d}".encode()


def connect_ranks(rank: int, size: int, host: str, broadcast: Callable[[int], int]) -> dict[int, Connection]:
    """Connect this rank to rank 0, or rank 0 to all others. Returns connections by the rank at the other end.

    host: address of rank 0. broadcast: returns on every rank the number that rank 0 passes. Raises UserError, on rank 0 naming the
    ranks that have not connected in time.
    """
    if rank:
        port, asked, answered = broadcast(0), broadcast(0), broadcast(0)
        return {0: _connect(rank, host, port, asked, answered)}
    with _listen(host, size) as server:
        broadcast(server.getsockname()[1])
        asked, answered = (broadcast(secrets.randbits(_SECRET_BITS)) for _ in range(2))
        return _accept_all(server, size, asked, answered)


def _listen(host: str, size: int) -> socket.socket:
    """Listen on the interface of MASTER_ADDR only, so that no other network reaches the port.

    On all interfaces where other hosts know this one by an address that is none of its own (a translated one, or a name that is
    loopback here).
    """
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    everywhere = str(address[0]).startswith("127.") and ranks_on_this_host(size) < size
    with suppress(OSError):
        if not everywhere:
            return socket.create_server((str(address[0]), 0), family=family, backlog=size)
    dualstack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dualstack else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=dualstack, backlog=size)


def _connect(rank: int, host: str, port: int, asked: int, answered: int) -> Connection:
    """Connect to rank 0 and exchange hellos."""
    try:
        connection = socket.create_connection((host, port), timeout=_TIMEOUT)
        connection.sendall(_Hello(rank, os.getpid(), asked).encode())
        hello = _decode(connection.recv(_HELLO_BYTES, socket.MSG_WAITALL), answered)
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank 0 at {host}, port {port} ({error.strerror or error}); the hosts have to reach each "
            "other on any port"
        ) from error
    if hello is None:
        raise UserError(f"rank {rank}: what answers at {host}, port {port} is not rank 0; check MASTER_ADDR")
    return Connection(connection, hello.pid)


def _accept_all(server: socket.socket, size: int, asked: int, answered: int) -> dict[int, Connection]:
    """Accept connections until each rank has one; those without a right hello in time are closed."""
    found: dict[int, Connection] = {}
    waiting: dict[socket.socket, tuple[bytes, float]] = {}
    """Connection -> the part of its hello that has come, and when the connection has to be closed."""
    end = time.monotonic() + _TIMEOUT
    while len(found) < size - 1:
        if time.monotonic() > end:
            missing = ", ".join(str(number) for number in range(1, size) if number not in found)
            raise UserError(
                f"rank(s) {missing} have not connected to rank 0 within {_TIMEOUT:.0f} s; the hosts have to reach each other on "
                "any port"
            )
        for connection in select.select([server, *waiting], [], [], 0.2)[0]:
            if connection is server:
                accepted, _ = server.accept()
                accepted.setblocking(False)
                waiting[accepted] = b"", time.monotonic() + _HELLO_TIMEOUT
                continue
            content, closes = waiting[connection]
            content += (received := _receive(connection, _HELLO_BYTES - len(content)))
            waiting[connection] = content, closes if received else 0.0
            if len(content) == _HELLO_BYTES:
                hello = _decode(content, asked)
                del waiting[connection]
                if hello is None or not 0 < hello.rank < size or hello.rank in found:
                    connection.close()
                    continue
                connection.settimeout(_HELLO_TIMEOUT)
                connection.sendall(_Hello(0, os.getpid(), answered).encode())
                found[hello.rank] = Connection(connection, hello.pid)
        for connection in [one for one, (_, closes) in waiting.items() if time.monotonic() > closes]:
            del waiting[connection]
            connection.close()
    for connection in waiting:
        connection.close()
    return found


def _receive(connection: socket.socket, size: int) -> bytes:
    """Return up to `size` bytes that have come; none where the other side has closed the connection."""
    try:
        return connection.recv(size)
    except OSError:
        return b""


def _decode(content: bytes, secret: int) -> _Hello | None:
    """Read a hello; None unless it shows the secret."""
    fields = [content[:12], content[12:24], content[24:]]
    shown = len(content) == _HELLO_BYTES and hmac.compare_digest(fields[2], f"{secret:20d}".encode())
    return _Hello(*map(int, fields)) if shown else None
