"""Every program answers --help, and a mistyped flag, before anything else happens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    *ROOT.glob("main_*.py"), *ROOT.glob("submitit_*.py"), *ROOT.glob("demo*.py"),
    ROOT / "reproduce.py", *ROOT.glob("benchmarks/*.py"),
    *(p for p in ROOT.glob("benchmarks/peers/*.py") if "__main__" in p.read_text()),
]  # fmt: skip
TOOLS = [path for path in ROOT.glob("tools/*.py") if path.stem != "__init__"]
NO_PROGRAMS = (
    "contest",
    "cost_curves",
    "step_facts",
    "study",
)  # of benchmarks/: what several of them use
PROGRAMS = {
    path.stem if path.parent == ROOT else f"{path.parent.name}.{path.stem}": path
    for path in SCRIPTS + TOOLS
    if path.stem not in NO_PROGRAMS
}
# What takes longer to import than torch itself, and is not needed to read a flag.
LATE = ("timm", "torchvision", "torch._dynamo", "scipy.stats", "sklearn", "tensorboard")
QUICK = sorted(name for name in PROGRAMS if not name.startswith(("benchmarks", "demo_dense")))


# Runs each program's --help in one process, in which torch is imported once.
ALL = """
import contextlib, io, json, os, runpy, sys
sys.path[:0] = ["", os.getcwd()]
for name, file in json.loads(sys.argv[1]):
    sys.path[0] = os.path.dirname(file)
    sys.argv, out, err, status = [file, "--help"], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            status = end.code
    said = [status, out.getvalue(), err.getvalue(), list(sys.modules)]
    print(json.dumps([name, said]), flush=True)
"""


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple]:
    """By program: its status, stdout and stderr, and what is imported by then."""
    order = sorted(PROGRAMS, key=lambda name: (name not in QUICK, name))
    files = json.dumps([(name, str(PROGRAMS[name])) for name in order])
    done = subprocess.run(
        [sys.executable, "-c", ALL, files], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_program_helps_and_reads_its_flags_first(helped, name):
    status, out, err, imported = helped[name]
    assert not status and out.startswith("usage:"), err[-500:]
    if name in QUICK:
        assert not set(imported) & set(LATE)


def test_a_program_helps_by_itself():
    for words in (["reproduce.py"], ["-m", "tools.scenes"]):
        done = subprocess.run(
            [sys.executable, *words, "--help"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr
