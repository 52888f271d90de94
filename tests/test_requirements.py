"""The lowest versions are the bounds of requirements.txt; hosted jobs cover all of Python."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINE = re.compile(r"^([A-Za-z0-9_.-]+)(>=|==)(\d+(?:\.\d+)*)", re.M)
REGENERATE = "run make lowest"


def versions(name: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Of a file of requirements: operator and version by name."""
    found = LINE.findall((ROOT / name).read_text())
    return {
        package.lower().replace("_", "-"): (operator, tuple(map(int, version.split("."))))
        for package, operator, version in found
    }


def test_the_lowest_versions_are_the_bounds():
    """Of a bound such as 1.15 the lowest is 1.15.0; 2.6.0 need not be written out either."""
    bounds, lowest = versions("requirements.txt"), versions("requirements-lowest.txt")
    assert {operator for operator, _ in bounds.values()} == {">="}
    assert {operator for operator, _ in lowest.values()} == {"=="}
    for name, (_, bound) in bounds.items():
        assert name in lowest, f"{name} is missing: {REGENERATE}"
        assert lowest[name][1][: len(bound)] == bound, f"{name}: {REGENERATE}"


@pytest.mark.parametrize("job", ["make test ", "make test-lowest ", "make slow-test "])
def test_every_kind_of_test_has_a_job(job):
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert job in workflow
    assert f"{job.split()[1]}:" in (ROOT / "Makefile").read_text()


def test_the_jobs_have_the_first_and_the_last_python():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    first = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]
    last = re.search(r"Python 3\.10 to ([\d.]+\d)", (ROOT / "README.md").read_text())[1]
    assert f'python: ["{first}", "{last}"]' in workflow
