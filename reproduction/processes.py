"""Find a process again when whoever started it has died: by its number and when it started.

A number alone may have gone to another process meanwhile, so it is never enough.
"""

import contextlib
import os
import signal
import socket
import subprocess


def identity(pid: int) -> dict[str, str | int]:
    """What tells a process of this machine from all others, before and after; for a JSON file."""
    return {"pid": pid, "host": socket.gethostname(), "started": started(pid) or ""}


def is_ours(known: dict) -> bool:
    """Whether `known` describes a process, and one of this machine, which alone can look for it."""
    return bool(known.get("started")) and known.get("host") == socket.gethostname()


def is_alive(known: dict) -> bool:
    """Whether the process that `identity` described runs, as far as this machine can tell.

    Args:
        known: holds what `identity` returned, perhaps among other things.
    """
    return is_ours(known) and started(known["pid"]) == known["started"]


def started(pid: int) -> str | None:
    """When a process started, as text that no other process of this number has; None where there
    is none, or it has ended and nobody has asked for its status."""
    if not os.path.exists("/proc/self/stat"):
        return _started_by_ps(pid)
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()  # the name before may hold anything
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"  # in ticks since the boot


def _started_by_ps(pid: int) -> str | None:
    """The same where there is no /proc, to the second."""
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=10, env=os.environ | {"LC_ALL": "C"}
        ).stdout.split(maxsplit=1)
    except (OSError, subprocess.SubprocessError):
        return None
    return found[1].strip() if len(found) == 2 and not found[0].startswith("Z") else None


class Adopted:
    """A process that an earlier reproduce.py started, and that this one waits for.

    Args:
        known: what `identity` returned when it was started.
    """

    def __init__(self, known: dict):
        self.known, self.pid = known, known["pid"]

    def poll(self) -> int | None:
        """None while it runs; then 0, whatever its exit status was: only its parent gets that."""
        return None if is_alive(self.known) else 0


def send(process, number: signal.Signals) -> None:
    """Send a signal to a process that leads a group, and to that group; none if it has ended."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
