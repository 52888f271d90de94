"""Intervals over seeds and images against known distributions; Holm's method against its steps."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import false_verdicts
from util.evaluation import over_seeds
from util.evaluation.over_seeds import comparison, half_width, holm, p_value


@pytest.mark.parametrize("freedom", [1, 2, 4, 9])
@pytest.mark.parametrize("level", [0.05, 0.01, 0.05 / 27])
def test_the_interval_covers_whatever_share_of_the_variance_is_the_seeds(level, freedom):
    """By integration over the estimated spread: never more misses than said, all of them where
    there are seeds alone or images alone."""
    quantiles = (np.arange(20000) + 0.5) / 20000
    squares = stats.chi2.ppf(quantiles, freedom) / freedom  # an estimate over the true variance
    misses = []
    for share in np.linspace(0, 1, 21):
        of_seeds = np.sqrt(share * squares)
        half = half_width(level, of_seeds, np.sqrt(1 - share), freedom)
        misses.append(2 * stats.norm.sf(half).mean())
    assert max(misses) <= 1.005 * level
    assert misses[0] == pytest.approx(level, rel=0.01)
    assert misses[-1] == pytest.approx(level, rel=0.01)


def test_p_is_the_t_tests_and_the_normal_ones_and_inverts_the_interval():
    values = [0.3, 0.7, 0.4]
    one = comparison(values, 0.0)
    assert one.p_of(one.difference) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (one.low, one.high) == (pytest.approx(low), pytest.approx(high))
    images = over_seeds.p_value(2.0, 0.0, 1.0, 2)
    assert images == pytest.approx(2 * stats.norm.sf(2), rel=1e-6)
    both = comparison(values, 0.2)
    for level in (0.5, 0.05, 1e-4):
        assert both.p_of(both.half(level)) == pytest.approx(level, rel=1e-6)
    assert p_value(np.array([0.0, 1e9]), 1.0, 1.0, 2).tolist() == [1.0, pytest.approx(0, abs=1e-9)]


def test_one_seed_has_no_p_and_equal_runs_no_difference():
    one, same = comparison([5.0], 0.1), comparison([0.0, 0.0, 0.0], 0.0)
    over_seeds.correct([one, same])
    assert one.p_of(5.0) == 1 and one.low == -np.inf and one.verdict == "cannot be told"
    assert same.p == 1 and same.family == 1 and same.verdict == "no difference (within ±1)"


def test_holms_steps():
    """Four p in order are compared with 1/4, 1/3, 1/2 and 1 of the level, until one is above."""
    found = holm(np.array([0.04, 0.01, 0.03, 0.005]))
    assert found.tolist() == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.6, 0.9]).tolist() == [1, 1] and holm([]).size == 0
    rows = np.random.default_rng(0).random((3, 5))
    assert np.array_equal(holm(rows), np.stack([holm(row) for row in rows]))
    for row in rows:
        order, rejected = np.argsort(row), set()
        for step, index in enumerate(order):
            if row[index] > 0.3 / (len(row) - step):
                break
            rejected.add(int(index))
        assert rejected == set(np.flatnonzero(holm(row) <= 0.3).tolist())


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("world", false_verdicts.WORLDS, ids=lambda world: world.name)
def test_at_most_five_percent_of_tables_say_anything_false(world, seeds):
    tables = 400
    methods = {"now": false_verdicts.now}
    rate, _ = false_verdicts.rate_of_false_tables(world, seeds, tables, methods, 1)["now"]
    slack = 3 * (0.05 * 0.95 / tables) ** 0.5
    assert rate <= 0.05 + slack


def test_the_simulation_judges_as_the_product_does_and_finds_what_was_wrong_before():
    world = false_verdicts.WORLDS[2]
    methods = {"before": false_verdicts.before}
    any_claim, each = false_verdicts.rate_of_false_tables(world, 3, 400, methods, 1)["before"]
    assert any_claim > 0.4 and each > 0.15
    tables = false_verdicts.draw(world, 2, 3, np.random.default_rng(0))
    for values, given in zip(tables.values, false_verdicts.now(tables), strict=True):
        ones = [comparison(row, tables.of_images) for row in values]
        margins = np.where(false_verdicts.IS_SMALL, over_seeds.MARGIN, 0)
        far = [abs(abs(one.difference) - margin) for one, margin in zip(ones, margins, strict=True)]
        over_seeds.correct(ones, far)
        assert [one.p <= over_seeds.LEVEL for one in ones] == given.tolist()


def test_a_pooled_spread_is_that_of_all():
    ones = [comparison(values, 0.0) for values in ([1.0, 3.0, 2.0], [0.0, 4.0, 2.0])]
    over_seeds.pool(ones)
    spread = np.sqrt((2 * 1.0 + 2 * 4.0) / 4)
    assert ones[0].pooled == pytest.approx(stats.t.ppf(0.975, 4) * spread / np.sqrt(3))
    assert ones[0].pooled == ones[1].pooled
