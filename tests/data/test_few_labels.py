"""Draws of few labels, and the part of them that is held out."""

import numpy as np
import pytest

from util.data import few_labels
from util.data.few_labels import balanced_draw, check_few, held_out
from util.errors import UsageError

RNG = np.random.default_rng(0)


def test_a_balanced_draw():
    targets = RNG.permutation(np.repeat([0, 1, 2, 7], [100, 50, 10, 1]))
    ids = balanced_draw(targets, 0.1)
    assert np.array_equal(ids, balanced_draw(targets, 0.1, 0))
    assert (np.diff(ids) > 0).all()
    assert {t: (targets[ids] == t).sum() for t in (0, 1, 2, 7)} == {0: 10, 1: 5, 2: 1, 7: 1}
    assert np.array_equal(balanced_draw(targets, 1.0), np.arange(161))


def test_draws_are_those_of_a_class_after_the_other():
    """One sort finds the images of all classes, as a search for each class does."""
    targets = RNG.choice([0, 3, 5, 900], 400, p=[0.5, 0.3, 0.15, 0.05])
    found = few_labels._by_class(targets)
    assert [target for target, _ in found] == np.unique(targets).tolist()
    for target, ids in found:
        assert np.array_equal(ids, np.flatnonzero(targets == target))
    assert few_labels._by_class(targets[:0]) == []


@pytest.mark.parametrize(("amount", "counts"), [(3, [3, 3, 3]), (0.1, [6, 2, 1])])
def test_draws_differ_by_their_number_and_grow(amount, counts):
    targets = np.repeat([0, 1, 2], [60, 20, 4])
    draws = [balanced_draw(targets, amount, draw) for draw in range(6)]
    for ids in draws:
        assert np.bincount(targets[ids]).tolist() == counts and len(set(ids)) == len(ids)
    assert len({tuple(ids) for ids in draws}) == 6
    for draw, ids in enumerate(draws):  # a smaller amount is part of a larger one
        assert np.isin(balanced_draw(targets, type(amount)(amount * 0.67), draw), ids).all()
    with pytest.raises(UsageError, match="class 2 has 4 images, fewer than 5: lower --few"):
        balanced_draw(targets, 5)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_held_out_part_is_balanced_and_always_the_same(share):
    targets = RNG.permutation(np.repeat([0, 1, 2, 3, 4], [50, 290, 20, 2, 1]))
    is_held = held_out(targets, share)
    assert np.array_equal(is_held, held_out(targets, share))
    expected = [round(50 * share), round(290 * share), round(20 * share), 1, 0]
    assert np.bincount(targets[is_held], minlength=5).tolist() == expected
    assert np.array_equal(np.unique(targets[~is_held]), np.arange(5))  # each class is trained on


def test_one_label_of_each_class_leaves_none_to_hold_out():
    with pytest.raises(UsageError, match="no class has two labelled images"):
        held_out(np.arange(5))


def test_a_class_that_is_too_small_is_named():
    targets, classes = np.repeat([0, 1, 2], [9, 1, 4]), ["cat", "dog", "eel"]
    check_few(targets, classes, [1])
    check_few(targets, [*classes, "absent"], [])
    with pytest.raises(UsageError, match="class dog has 1 image, fewer than 2: lower --few"):
        check_few(targets, classes, [1, 2])
    with pytest.raises(UsageError, match=r"class dog has 1 image \(and 1 more\), fewer"):
        check_few(targets, classes, [10, 5])
