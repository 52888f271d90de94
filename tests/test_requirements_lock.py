"""requirements-cuda12.lock is what requirements.txt asks for, with hashes, for a V100."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements-cuda12.lock"


def pins(text: str | None = None) -> dict[str, tuple[str, set[str]]]:
    """The version of each package in a lock, by default ours, and its files' hashes."""
    text = re.sub(r"^#.*\n", "", text or LOCK.read_text(), flags=re.M)
    found = {}
    for entry in text.replace("\\\n", " ").splitlines():
        name, version = re.fullmatch(r"([\w.-]+)==(\S+)", entry.split()[0]).groups()
        hashes = entry.split()[1:]
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes), entry
        found[canonicalize_name(name)] = version, set(hashes)
    return found


def test_every_package_has_one_version_and_hashes_and_no_address():
    assert len(pins()) > 30 and all(hashes for _, hashes in pins().values())
    assert "://" not in LOCK.read_text() and "index" not in LOCK.read_text()


def test_it_satisfies_the_requirements():
    lines = (line.partition("#")[0].strip() for line in
             (ROOT / "requirements.txt").read_text().splitlines())  # fmt: skip
    for line in filter(None, lines):
        wanted = Requirement(line)
        version, _ = pins()[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{line}: the lock has {version}: make lock"


def test_its_torch_has_code_for_a_v100():
    """Of what PyPI has, CUDA 12 builds before 2.11 do; cuDNN from 9.11 on has none for it."""
    known = pins()
    assert tuple(map(int, known["torch"][0].split(".")[:2])) < (2, 11)
    cuda = [name for name in known if name.startswith("nvidia-")]
    assert cuda and all(name.endswith("-cu12") for name in cuda)
    assert tuple(map(int, known["nvidia-cudnn-cu12"][0].split(".")[:2])) < (9, 11)


def uv(*words: str) -> subprocess.CompletedProcess:
    """Run uv for the image's Python and system."""
    program = shutil.which("uv")
    if program is None:
        pytest.skip("uv is not installed")
    target = ("--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_28")
    done = subprocess.run(
        [program, "pip", *words, *target, "--only-binary", ":all:"], capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_an_environment_can_be_made_of_it(tmp_path):
    """As far as that goes without 5 GB: every package is found, and fits the others."""
    words = ("--dry-run", "--require-hashes", "--target", str(tmp_path), "-r", str(LOCK))
    said = uv("install", *words).stderr
    assert f"Would install {len(pins())} packages" in said and "torch==2." in said


@pytest.mark.slow
def test_its_hashes_are_those_of_the_registrys_files(tmp_path):
    plain = tmp_path / "pins.txt"
    plain.write_text("".join(f"{name}=={version}\n" for name, (version, _) in pins().items()))
    words = ("--no-header", "--no-annotate", "--generate-hashes", "--no-deps")
    found = pins(uv("compile", str(plain), *words).stdout)
    for name, (version, hashes) in pins().items():
        assert found[name][0] == version and hashes <= found[name][1], name
