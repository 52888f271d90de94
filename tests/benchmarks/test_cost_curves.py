"""Curves of cost: their exponents, and where they leave what is expected."""

import math

import pytest

from benchmarks.cost_curves import Curve, measure, row


def test_the_exponent_is_that_of_a_power():
    points = [(x, 3e-4 * x**1.5) for x in (10, 100, 1000)]
    curve = Curve("a step", "images", 1.5, points)
    assert curve.exponent() == pytest.approx(1.5) and curve.breaks() == "no"
    for few in ([], points[:1]):
        curve = Curve("a step", "images", 1, few)
        assert math.isnan(curve.exponent()) and curve.as_json()["exponent"] is None
        assert row(curve).count("|") == 7


def test_a_constant_cost_hides_a_power_until_it_is_overtaken():
    curve = Curve("a head", "classes", 0, [(x, 1 + x / 1000) for x in (10000, 1, 10, 100, 1000)])
    assert curve.breaks() == "1000 to 10000: 0.74"
    assert 0.1 < curve.exponent() < 0.4
    assert row(curve).startswith("| a head | classes | 10000: 11, 1: 1, ")
    assert curve.as_json()["breaks"] == curve.breaks()


def test_turns_go_round_and_the_first_is_not_counted_and_a_failure_ends_the_curve():
    order = []

    def build(value: int):
        if value > 2:
            raise RuntimeError("not enough memory: you tried\nto allocate")

        def turn() -> float:
            order.append(value)
            return float(100 * (len(order) <= 2) + value)

        return turn

    curve = measure(Curve("it", "values", 1), [1, 2, 3, 4], build, rounds=3)
    assert order == [1, 2, 1, 2, 1, 2, 1, 2] and curve.points == [(1, 1.0), (2, 2.0)]
    assert curve.breaks() == "3: not enough memory: you tried"
