"""Ranks that find each other: strangers on the port change nothing, and only process ids that a rank has told may be ended."""

import os
import queue
import socket
import threading

import psutil
import pytest

from bigcircuit.distributed import rendezvous, watchdog
from bigcircuit.distributed.rendezvous import Connection, connect_ranks
from bigcircuit.distributed.watchdog import Watchdog
from bigcircuit.errors import UserError


class Group:
    """A process group of threads: the numbers that rank 0 has passed, for each other rank."""

    def __init__(self, size):
        self.numbers = [queue.Queue() for _ in range(size)]

    def broadcast(self, rank):
        def passed(number):
            if rank:
                return self.numbers[rank].get(timeout=10)
            for waiting in self.numbers[1:]:
                waiting.put(number)
            return number

        return passed


@pytest.fixture
def closing():
    """Sockets to close at the end."""
    sockets = []
    yield sockets
    for connection in sockets:
        connection.close()


def meet(size, closing, between=lambda _: None, host="127.0.0.1"):
    """Connect `size` ranks, threads of this process; `between` is called with the port before ranks 1, 2, ... connect."""
    group, found = Group(size), {}

    def join(rank):
        found[rank] = connect_ranks(rank, size, host, group.broadcast(rank))

    threads = [threading.Thread(target=join, args=(rank,), daemon=True) for rank in range(size)]
    threads[0].start()
    port = group.numbers[-1].get(timeout=10)
    between(port)
    group.numbers[-1].queue.appendleft(port)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "it waits for ever"
    closing += [connection.socket for of_rank in found.values() for connection in of_rank.values()]
    return found


def test_every_rank_is_connected_to_rank_0_and_knows_its_process(closing):
    found = meet(3, closing)
    assert {rank: sorted(of_rank) for rank, of_rank in found.items()} == {0: [1, 2], 1: [0], 2: [0]}
    assert {connection.pid for of_rank in found.values() for connection in of_rank.values()} == {os.getpid()}
    for rank in (1, 2):
        found[rank][0].socket.sendall(b"%d" % rank)
        assert found[0][rank].socket.recv(1) == b"%d" % rank, "each under its own number"


def test_strangers_who_come_first_are_not_taken_for_ranks(closing):
    """One that says nothing, one that says what ranks once said, one that guesses, and one that is gone at once."""

    def strangers(port):
        for said in (b"", b"       1", b"%12d%12d%20d" % (1, os.getpid(), 7)):
            closing.append(socket.create_connection(("127.0.0.1", port)))
            closing[-1].sendall(said)
        socket.create_connection(("127.0.0.1", port)).close()

    found = meet(2, closing, strangers)
    found[1][0].socket.sendall(b"x")
    assert found[0][1].socket.recv(1) == b"x"


def test_only_the_interface_of_the_address_listens(closing):
    others = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET and not entry.address.startswith("127.")
    ]
    seen = []

    def knock(port):
        for address in (*others, "127.0.0.2"):
            with socket.socket() as probe:
                probe.settimeout(2)
                seen.append(probe.connect_ex((address, port)))

    meet(2, closing, knock)
    assert all(seen), "a connection by another address is refused"


def test_an_address_that_is_none_of_this_host_is_no_obstacle():
    """Rank 0's host may be known by a translated address; the secret holds there, too."""
    with rendezvous._listen("192.0.2.1", 2) as server:
        socket.create_connection(("127.0.0.1", server.getsockname()[1])).close()


def test_ranks_that_do_not_come_are_named_in_time(monkeypatch):
    monkeypatch.setattr(rendezvous, "_TIMEOUT", 0.3)
    group = Group(3)
    with pytest.raises(
        UserError, match=r"rank\(s\) 1, 2 have not connected to rank 0 within 0 s; the hosts have to reach"
    ):
        connect_ranks(0, 3, "127.0.0.1", group.broadcast(0))
    with pytest.raises(UserError, match=r"rank 1 cannot reach rank 0 at 127.0.0.1, port \d+ "):
        connect_ranks(1, 3, "127.0.0.1", group.broadcast(1))


def test_a_rank_does_not_trust_what_answers_in_place_of_rank_0():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"%12d%12d%20d" % (0, 1, 7)), daemon=True).start()
        numbers = iter([server.getsockname()[1], 1, 2])
        with pytest.raises(UserError, match="what answers at 127.0.0.1, port .* is not rank 0; check MASTER_ADDR"):
            connect_ranks(1, 2, "127.0.0.1", lambda _: next(numbers))


def test_a_heartbeat_cannot_name_a_process_to_end(monkeypatch):
    """The process that is ended is the one whose id came with the rank's secret."""
    ended, exits = [], []
    monkeypatch.setattr(watchdog.os, "kill", lambda pid, _: ended.append(pid))
    monkeypatch.setattr(watchdog.os, "_exit", exits.append)
    monkeypatch.setattr(watchdog, "TIMEOUT", 1e3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guard = Watchdog(2, {1: Connection(ours, 4_000_001)})
        heartbeat = '{"pid": 1, "pid_namespace": "%s", "waits": true, "active": true, "status_count": 1, "status": "x", "at": ""'
        theirs.sendall((heartbeat % watchdog._PID_NAMESPACE + ', "host": "h"}\n').encode())
        theirs.shutdown(socket.SHUT_WR)
        guard._thread.join(10)
    assert (ended, exits[:1]) == ([4_000_001], [watchdog.EXIT_CODE])
