"""What the columns of a table are called."""

import pytest

from util.errors import UsageError
from util.evaluation.tables import column_names, short_names


def test_short_names_are_folders_where_files_are_called_alike():
    assert short_names(["a/mae/checkpoint-last.pth", "b/x.pth", "pixels"]) == ["mae", "x", "pixels"]
    same = ["a/m/checkpoint-last.pth", "b/m/checkpoint-last.pth"]
    assert short_names(same) == same


def test_each_checkpoint_has_a_name_of_its_own():
    assert column_names(["A", "B"], ["x", "y"]) == ["A", "B"]
    for names in (["A"], ["A", "A"]):
        with pytest.raises(UsageError, match="--names A"):
            column_names(names, ["x", "y"])
