"""docs/protocols.md says what the programs, their recipes and their models do, in every section.

A table of flags stands under the command whose values it has; a table of numbers is compared with
what is built; a table of recipes says in which flags each differs from the command above it.
"""

import importlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import protocol_numbers
import pytest

from util.flags.defaults import shown
from util.randomness import seed_libraries

ROOT = Path(__file__).resolve().parents[1]
NEEDED = {"main_segmentation": ["--data_path", "DATA"], "main_detection": ["--data_path", "DATA"]}
# What a recipe names besides the protocol: the data, and what is saved, tested and kept when.
BESIDE = {
    "model", "dataset", "eval_every", "save_every_steps", "save_every_epochs", "keep_epochs",
    "test_every", "batch_size", "accum_iter",
}  # fmt: skip
OPEN = ("not given", "lost")  # how a published value begins that leaves the choice to us


@dataclass
class Table:
    section: str
    columns: list[str]
    command: list[str]  # the last one named before it
    rows: dict[str, list[str]] = field(default_factory=dict)  # the other cells, by the first

    def __str__(self) -> str:
        return f"{self.section}, {' '.join(self.command[1:]) or self.columns[0]}"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables() -> list[Table]:
    """All tables of the document, in its order."""
    text = (ROOT / "docs" / "protocols.md").read_text()
    found, section, command, before = [], "", [], ""
    # A command may run over the end of a line.
    text = re.sub(r"`main_[^`]*`", lambda match: match[0].replace("\n", " "), text)
    for line in text.splitlines():
        if line.startswith("## "):
            section, command = line[3:], []
        named = re.findall(r"`(main_\w+\.py [^`]*)`", line)
        if not line.startswith("|"):
            command = named[-1].split() if named else command
        elif not before.startswith("|"):
            found.append(Table(section, cells_of(line), command))
        elif not line.startswith("|---"):
            name, *rest = cells_of(line)
            assert name not in found[-1].rows, f"{found[-1]}: {name} stands there twice"
            found[-1].rows[name.strip("`")] = rest
        before = line
    return found


TABLES = tables()


def of_kind(first_column: str) -> list[Table]:
    return [table for table in TABLES if table.columns[0] == first_column]


def point(section: str, name: str) -> list[str]:
    """A point's cells: published, ours, reason, effect."""
    return next(t.rows[name] for t in of_kind("point") if t.section == section and name in t.rows)


def values(command: list[str]):
    """What a command's main makes of its words."""
    main = command[0].removesuffix(".py")
    words = [word.replace("@recipes/", f"@{ROOT}/recipes/") for word in command[1:]]
    return importlib.import_module(main).parse_args(words + NEEDED.get(main, []))


def agree(published: str, ours: str) -> bool:
    """Whether a published cell, but for what it adds in brackets or behind a comma, is ours."""
    return published.startswith(OPEN) or re.split(r" \(|, ", published)[0] == ours


@pytest.mark.parametrize("table", of_kind("flag"), ids=str)
def test_a_table_of_flags_has_the_values_of_its_command(table):
    args = values(table.command)
    assert len(table.rows) >= 2
    for flag, (published, ours) in table.rows.items():
        assert ours == shown(getattr(args, flag.removeprefix("--"))), flag
        assert agree(published, ours), f"{flag}: {published} is not {ours}: a row of the points?"


@pytest.mark.parametrize("table", of_kind("flag"), ids=str)
def test_every_flag_that_its_recipe_gives_is_in_the_table(table):
    args = values(table.command)
    names = [name for group in args.settings.groups.values() for name in group]
    in_files = [name for name in names if args.settings.sources.get(name, "").startswith("@")]
    assert {f"--{name}" for name in in_files if name not in BESIDE} <= table.rows.keys()


@pytest.mark.parametrize("table", of_kind("recipe"), ids=str)
def test_a_table_of_recipes_says_in_which_flags_each_differs(table):
    like = values(table.command)
    main, known = table.command[0], like.settings.values(like)
    for recipe, (_, differs) in table.rows.items():
        args = values([main, f"@recipes/{recipe}.args"])
        changed = {
            f"--{name} {shown(value)}"
            for name, value in args.settings.values(args).items()
            if shown(value) != shown(known[name]) and name not in BESIDE
        }
        assert set(re.findall(r"`(--[^`]*)`", differs)) == changed, recipe


@pytest.mark.parametrize("table", of_kind("number"), ids=str)
def test_a_table_of_numbers_has_those_of_what_is_built(table):
    seed_libraries(0)
    found = protocol_numbers.BY_SECTION[table.section]()
    assert table.rows.keys() == found.keys()
    for name, (published, ours) in table.rows.items():
        assert ours == shown(found[name]), name
        assert agree(published, ours), name


@pytest.mark.parametrize("main", ["main_segmentation.py", "main_detection.py"])
def test_what_a_dense_recipe_names_is_the_programs_default_too(main):
    table = next(t for t in of_kind("flag") if t.command[0] == main)
    plain = values([main, "--images_per_step", table.rows["--images_per_step"][1]])
    for flag, (_, ours) in table.rows.items():
        if flag != "--input_size":
            assert shown(getattr(plain, flag.removeprefix("--"))) == ours, flag


def test_every_recipe_of_a_whole_run_is_in_the_document():
    """Those of ablations differ from them as their own headers say."""
    told = {word for table in TABLES for word in table.command}
    told |= {f"@recipes/{name}.args" for table in of_kind("recipe") for name in table.rows}
    assert {f"@recipes/{path.name}" for path in (ROOT / "recipes").glob("*.args")} <= told


def test_every_section_has_flags_and_points_and_is_listed_at_the_top():
    text = (ROOT / "docs" / "protocols.md").read_text()
    sections = re.findall(r"^## (.*)", text, re.M)
    listed = re.findall(r"\[([^]]*)\]\(#", text.split("\n## ")[0])
    assert listed == sections and len(sections) == len(set(sections)) >= 9
    for section in sections:
        kinds = {table.columns[0] for table in TABLES if table.section == section}
        assert "point" in kinds and (section == sections[0] or "flag" in kinds), section


def test_every_point_says_what_is_published_ours_and_the_effect():
    for table in of_kind("point"):
        assert table.columns == ["point", "published", "ours", "reason", "effect"]
        for point, (published, ours, _, effect) in table.rows.items():
            same = ours.startswith(("the same", "as published"))
            assert published and ours and (effect or same), f"{table.section}: {point}"


def test_the_spread_of_mixups_shares_is_what_the_document_says():
    """The share of a pair's stronger image, in the mean over a step's 32 draws, and of one."""
    rng = np.random.default_rng(0)
    own = np.where(rng.random(100_000) < 0.5, rng.beta(0.8, 0.8, 100_000), rng.random(100_000))
    spread = np.maximum(own, 1 - own).std()
    for groups in (32, 16, 64, 1):
        said = f"{spread / groups**0.5:.3f}".lstrip("0")
        assert said in point("Fine-tuning", "mixup and cutmix")[3], f"{groups} draws: {said}"


def test_the_share_of_tokens_whose_window_the_border_cuts():
    side = 64
    cut = 1 - (side - side % 14) ** 2 / side**2
    assert protocol_numbers.cut_windows(64) == pytest.approx(cut)
    assert protocol_numbers.cut_windows(56) == 0
    assert f"{100 * cut:.0f} %" in point("Detection", "windows at the border")[3]
