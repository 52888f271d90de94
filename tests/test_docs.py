"""README and docs/: short enough, links lead somewhere, and every command is one."""

import importlib
import re
import runpy
import shlex
from functools import partial

import pytest
from documented import COMMANDS, PAGES, ROOT, program

import submitit_launch
from util.errors import UsageError

DATA_IS_MISSING = ("no such", "not a folder", "is not there", "cannot be read", "no folder",
                   "no checkpoint file", "is no readable text file")  # fmt: skip


def anchor(heading: str) -> str:
    """What GitHub calls a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


LINKED = [*PAGES, *(ROOT / name for name in ("RESULTS.md", "recipes/README.md", "CHANGELOG.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target[0]).resolve() if target[0] else page
        assert file.exists(), f"{page.name}: {target[0]}"
        if target[1]:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert target[1] in map(anchor, headings), f"{page.name}: {target}"


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\(docs/(\w+\.md)\)", (ROOT / "README.md").read_text()))
    others = "".join(page.read_text() for page in PAGES if page.name in linked)
    linked |= set(re.findall(r"\((\w+\.md)[)#]", others))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_every_command_is_understood(page, line, monkeypatch, capsys):
    """By the program's own parser; other machines' data and optional packages may be missing."""
    found = program(shlex.split(line.split(" > ")[0], comments=True))
    if found is None or found[0].startswith(("benchmarks", "docs", "demo")):
        pytest.skip("no program that has a parser of ours")
    name, words = found
    monkeypatch.chdir(ROOT)
    if name.startswith("submitit"):
        main = "main_pretrain" if name == "submitit_pretrain" else words.pop(0)
        module = importlib.import_module(main.removesuffix(".py"))
        parse = partial(submitit_launch.split_args, module)
    else:
        parse = importlib.import_module(name).parse_args
    try:
        parse(words)
    except UsageError as error:
        assert any(text in str(error) for text in DATA_IS_MISSING), f"{line}\n{error}"
    except SystemExit:
        assert "is not installed: pip install" in capsys.readouterr().err, line


def test_the_list_of_messages_is_the_codes():
    page = runpy.run_path(str(ROOT / "docs" / "messages.py"))["page"]()
    assert page == (ROOT / "docs" / "messages.md").read_text(), "python docs/messages.py"
