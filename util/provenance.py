"""Where numbers come from: the code's commit and the versions of its libraries."""

import contextlib
import os
import subprocess
from importlib import metadata


def versions() -> dict[str, str]:
    """Versions of what a run's numbers and pixels come from, as far as it is installed."""
    found = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "torchcodec"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str:
    """The code's commit; a job runs a copy outside git and gets it from its launcher."""
    if "MIMAE_COMMIT" in os.environ:
        return os.environ["MIMAE_COMMIT"]
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        command = ["git", "-C", folder, "describe", "--always", "--dirty", "--exclude", "*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
        return found.stdout.strip() or "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"
