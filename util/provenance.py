"""Where numbers come from: the code's commit and the versions of its libraries."""

import contextlib
import hashlib
import os
import re
import subprocess
from importlib import metadata

# What computes the numbers, for git: edits elsewhere, of documents or tests, make no other code.
SOURCES = (
    ":(glob)*.py", "benchmarks/*.py", "encoders", "exports", "heads", "recipes/*.args",
    "reproduction", "tools", "util",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of what a run's numbers and pixels come from, as far as it is installed."""
    found = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "torchcodec"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The code's commit; a job runs a copy outside git and gets it from its launcher.

    Where sources are edited or not yet known to git, "-dirty-" and a digest of those edits and
    files follow, so that two edited trees are told apart. Three calls of git, some 20 ms.
    """
    if "MIMAE_COMMIT" in os.environ:
        return os.environ["MIMAE_COMMIT"]
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        name = _git(folder, "describe", "--always", "--exclude", "*").decode().strip()
        return name + _edits(folder) if name else "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def is_same(one: str, other: str) -> bool:
    """Whether two names are of one commit, whose number may be abbreviated."""
    if all(re.fullmatch("[0-9a-f]{7,40}", name) for name in (one, other)):
        return one.startswith(other) or other.startswith(one)
    return one == other


def _edits(folder: str) -> str:
    """ "-dirty-" and a digest of what differs from the last commit; empty where nothing does."""
    changes = _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--", *SOURCES)
    new = _git(folder, "ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES)
    names = sorted(os.fsdecode(name) for name in new.split(b"\0") if name)
    if not changes and not names:
        return ""
    digest = hashlib.sha256(changes)
    for name in names:
        with contextlib.suppress(OSError), open(os.path.join(folder, name), "rb") as file:
            digest.update(os.fsencode(name) + b"\0" + file.read() + b"\0")
    return f"-dirty-{digest.hexdigest()[:8]}"


def _git(folder: str, *words: str) -> bytes:
    """What git prints; nothing where it fails, as outside a repository."""
    found = subprocess.run(["git", "-C", folder, *words], capture_output=True, timeout=10)
    return b"" if found.returncode else found.stdout
