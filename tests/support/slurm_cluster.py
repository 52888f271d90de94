"""A real SLURM for the tests: started by slurm_ci.sh, with what a test does to it."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).with_name("slurm_ci.sh")
SBIN = "/usr/sbin:/sbin"  # Debian keeps the daemons there


def why_not_here() -> str:
    """What keeps a SLURM from being started here; empty where it can be. Installs it for root."""
    if os.geteuid() != 0:
        return "a SLURM needs root: for /etc/hosts, and to start tasks"
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:{SBIN}"):
        return ""
    if shutil.which("apt-get") is None:
        return "SLURM is not installed, and there is no apt-get to install it"
    environ = os.environ | {"SLURM_CI_DIR": "unused"}
    done = subprocess.run([SCRIPT, "install"], capture_output=True, text=True, env=environ)
    if done.returncode:
        return f"apt-get could not install SLURM: {done.stderr.strip().splitlines()[-1:]}"
    return ""


class Cluster:
    """A running SLURM of `num_nodes` virtual nodes; `environ` is what its clients need."""

    def __init__(self, num_nodes: int):
        # Short: a socket's path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-ci-", dir="/tmp"))
        self.folder.chmod(0o755)  # munged insists
        self.settings = {
            "SLURM_CI_DIR": str(self.folder),
            "SLURM_CI_NODES": str(num_nodes),
            "SLURM_CI_PORT": str(_free_ports(num_nodes + 1)),
        }
        self.environ = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> "Cluster":
        try:
            self._script("up")
        except BaseException:
            self._script("down")
            raise
        return self

    def __exit__(self, *_) -> None:
        self._script("down")
        shutil.rmtree(self.folder)

    def _script(self, word: str) -> None:
        environ = os.environ | self.settings
        done = subprocess.run([SCRIPT, word], capture_output=True, text=True, env=environ)
        assert done.returncode == 0, f"slurm_ci.sh {word}: {done.stdout}{done.stderr}"

    def run(self, *command: str) -> str:
        """A SLURM client's output."""
        environ = os.environ | self.environ
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=environ
        ).stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job: JobState, Restarts, NodeList, ..."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def kill_node(self, name: str, number: str) -> None:
        """As if a node lost its power: SIGKILL to its slurmd and all of the job on it."""
        slurmd = int((self.folder / "run" / f"slurmd-{name}.pid").read_text())
        wanted = {f"SLURMD_NODENAME={name}", f"SLURM_JOB_ID={number}"}
        tasks = [int(p) for p in os.listdir("/proc") if p.isdigit() and wanted <= _environ_of(p)]
        assert tasks, f"no task of job {number} on {name}"
        keepers = {_parent(task) for task in tasks} - set(tasks) - {1}  # slurmstepd
        # Those who would report a task's end come first.
        for pid in (slurmd, *keepers, *tasks):
            os.kill(pid, signal.SIGKILL)


def _free_ports(count: int) -> int:
    """The first of `count` free ports; outside the range of the jobs' own."""
    for first in range(31000, 32700, count):
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first
    raise OSError("no free ports")


def _environ_of(pid: str) -> set[str]:
    try:
        return set(Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"))
    except OSError:
        return set()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition: Callable[[], object], what: str, seconds: float) -> None:
    """Poll until `condition()` is true.

    Raises:
        TimeoutError: it did not become true; `what` is in the message.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.1)
