"""Every program answers --help, and a mistyped flag, before anything else happens."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    *ROOT.glob("main_*.py"), *ROOT.glob("submitit_*.py"), *ROOT.glob("demo*.py"),
    ROOT / "reproduce.py", *ROOT.glob("benchmarks/*.py"),
]  # fmt: skip
TOOLS = [path for path in ROOT.glob("tools/*.py") if path.stem != "__init__"]
NO_PROGRAMS = ("contest", "step_facts", "study")  # of benchmarks/: what several of them use
PROGRAMS = {
    path.stem if path.parent == ROOT else f"{path.parent.name}.{path.stem}": words
    for path, words in [(path, [str(path)]) for path in SCRIPTS]
    + [(path, ["-m", f"tools.{path.stem}"]) for path in TOOLS]
    if path.stem not in NO_PROGRAMS
}
# What takes longer to import than torch itself, and is not needed to read a flag.
LATE = ("timm", "torchvision", "torch._dynamo", "scipy.stats", "sklearn", "tensorboard")
QUICK = sorted(name for name in PROGRAMS if not name.startswith(("benchmarks", "demo_dense")))


def start(name: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "importtime", *PROGRAMS[name], *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_program_helps_and_reads_its_flags_first(name):
    done = start(name, "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr[-500:]
    assert "Traceback" not in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    if name in QUICK:
        assert not imported & set(LATE)
