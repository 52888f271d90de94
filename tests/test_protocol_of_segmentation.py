"""docs/protocols.md says of segmentation what its program and its recipe do."""

import re
from pathlib import Path

import main_segmentation

ROOT = Path(__file__).resolve().parents[1]


def rows() -> dict[str, tuple[str, str]]:
    """Published value and ours, by flag, of the section's first table."""
    text = (ROOT / "docs" / "protocols.md").read_text()
    section = re.search(r"## Segmentation\n(.*?)(\n## |\Z)", text, re.S)[1]
    cells = [
        line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `--")
    ]
    return {
        flag.strip(" `").removeprefix("--"): (published.strip(), ours.strip())
        for flag, published, ours, *more in cells
        if not more
    }


def shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_has_the_recipes_values():
    recipe = ROOT / "recipes" / "vit_base_ade20k.args"
    args = main_segmentation.parse_args([f"@{recipe}", "--data_path", "ade"])
    found = rows()
    assert len(found) >= 20
    for flag, (published, ours) in found.items():
        assert ours == shown(getattr(args, flag)), flag
        assert published.split(" (")[0].split(",")[0] == ours, flag  # in the first table all agree


def test_every_flag_of_the_recipe_is_in_the_table():
    lines = (ROOT / "recipes" / "vit_base_ade20k.args").read_text().splitlines()
    flags = {line.split()[0][2:] for line in lines if line.startswith("--")}
    not_of_the_protocol = {"model", "eval_every", "save_every_steps"}
    assert flags - not_of_the_protocol <= rows().keys()


def test_what_the_recipe_names_is_the_programs_default_too():
    plain = main_segmentation.parse_args(["--data_path", "ade", "--images_per_step", "16"])
    for flag, (_, ours) in rows().items():
        assert shown(getattr(plain, flag)) == ours or flag in ("input_size",), flag
