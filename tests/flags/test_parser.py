"""The parser itself: what it says of a mistyped flag, and how its help reads."""

import pytest

from util.flags.parser import ArgumentParser


def test_a_mistyped_flag_is_told_with_the_one_that_is_near(capsys):
    parser = ArgumentParser(description="x")
    parser.add_argument("--epochs", type=int)
    for typed, near in (("--epoch", "(did you mean --epochs?)"), ("--zzz", "")):
        with pytest.raises(SystemExit) as end:
            parser.parse_args([typed, "3"])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert typed in err and near in err and ("did you mean" in err) == bool(near)


def test_the_help_shows_commands_as_they_stand():
    text = "What it is\nfor.\n\n    python x.py \\\n        --y\n\npython z.py\n\nMore."
    parser = ArgumentParser(description=text)
    parser.add_argument("--rows", nargs="*", default=[], help="which (default: all)")
    shown = parser.format_help()
    assert "What it is for." in shown and "\n    python x.py \\\n        --y\n" in shown
    assert "\n    python z.py\n" in shown and "[]" not in shown
