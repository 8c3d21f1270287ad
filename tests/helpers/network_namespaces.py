"""Two hosts on one machine: two network namespaces joined by a virtual cable, made without root rights."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CABLE = "cable0"


class NotPermittedError(Exception):
    """Network namespaces are not permitted on this machine; the text names what was refused."""


@dataclass(frozen=True)
class Host:
    """A network namespace, kept by a waiting process; files and processors are those of this machine."""

    holder: int
    address: str

    def inside(self, *words: str) -> list[str]:
        """Return the command that runs these words on the host."""
        return ["nsenter", f"--target={self.holder}", "--user", "--net", "--preserve-credentials", *words]

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen:
        """Start a program on the host."""
        return subprocess.Popen(self.inside(*words), **options)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make hosts 10.77.0.1 and 10.77.0.2, which reach each other and nothing else; kills at the end what still runs on them.

    Raises NotPermittedError where the machine refuses.
    """
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        raise NotPermittedError(f"two hosts need the program {missing[0]} (packages util-linux and iproute2)")
    with ExitStack() as stack:
        first = Host(_hold(stack, ["unshare", "--user", "--map-root-user", "--net"]), "10.77.0.1")
        second = Host(_hold(stack, first.inside("unshare", "--net")), "10.77.0.2")
        _do(first, f"ip link add name {CABLE} type veth peer name {CABLE} netns {second.holder}")
        for host in (first, second):
            _do(host, f"ip address add {host.address}/24 dev {CABLE}")
            for interface in ("lo", CABLE):
                _do(host, f"ip link set dev {interface} up")
        yield first, second


def _hold(stack: ExitStack, maker: list[str]) -> int:
    """Make a namespace. Returns the id of the process that keeps it until the stack closes or this process ends."""
    pipe = subprocess.PIPE
    holder = subprocess.Popen([*maker, "cat"], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    stack.callback(holder.communicate)
    try:
        holder.stdin.write("the namespace is made once this comes back\n")
        holder.stdin.flush()
    except BrokenPipeError:
        pass
    if not holder.stdout.readline():
        raise NotPermittedError(f"two hosts need network namespaces: {holder.stderr.read().strip()}")
    stack.callback(_end_all, os.readlink(f"/proc/{holder.pid}/ns/net"))
    return holder.pid


def _do(host: Host, words: str) -> None:
    done = subprocess.run(host.inside(*words.split()), capture_output=True, text=True)
    if done.returncode:
        raise NotPermittedError(f"two hosts need a cable: {words}: {done.stderr.strip()}")


def _end_all(namespace: str) -> None:
    """Kill by id every process of a namespace, also those in sessions of their own."""
    limit = time.monotonic() + 10
    while (here := [process for process in Path("/proc").glob("[0-9]*") if _runs_in(process, namespace)]) and (
        time.monotonic() < limit
    ):
        for process in here:
            try:
                os.kill(int(process.name), signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _runs_in(process: Path, namespace: str) -> bool:
    try:
        return os.readlink(process / "ns/net") == namespace
    except OSError:  # the process has ended, or belongs to another user
        return False
