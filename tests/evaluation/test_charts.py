"""Charts: curves of one colour are told apart, and all names are in the picture."""

import numpy as np
import pytest

from util.evaluation.charts import (
    BOTTOM,
    COLOURS,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    Style,
    dashed,
    line_chart,
)


def pixels(curves: dict) -> np.ndarray:
    return np.asarray(line_chart("T", "block", list("abcdef"), curves)).astype(int)


def is_of(picture: np.ndarray, colour: tuple) -> np.ndarray:
    return (np.abs(picture - np.array(colour)) < 60).all(-1)


def test_curves_have_styles_of_their_own():
    styles = [Style.of(number) for number in range(72)]
    assert len(set(styles)) == 72 and not any(style.dashes for style in styles[:8])
    first, ninth, seventeenth = styles[::8][:3]
    assert first.colour == ninth.colour == seventeenth.colour == COLOURS[0]
    assert len({one.dashes for one in styles[::8][:3]}) == 3
    assert len({one.mark for one in styles[::8][:3]}) == 3


def test_dashes_go_on_round_a_corner():
    parts = list(dashed([(0, 0), (9, 0), (9, 8)], (4, 2)))
    assert parts == [[(0, 0), (4, 0)], [(6, 0), (9, 0), (9, 1)], [(9, 3), (9, 7)]]
    parts = list(dashed([(0, 0), (5, 0), (5, 9)], (8, 100)))
    assert parts == [[(0, 0), (5, 0), (5, 3)]]
    assert list(dashed([(1, 1)], (4, 2))) == [[(1, 1)]]


@pytest.mark.parametrize(("number", "share"), [(0, 1.0), (8, 0.64), (16, 0.4)])
def test_a_curve_beyond_the_eighth_has_gaps(number, share):
    """All at one height, but the last, which is alone above them."""
    curves = {f"c{n}": [0.0] * 6 for n in range(number)} | {"alone": [1.0] * 6}
    rows = pixels(curves)[TOP - 12 : TOP + 12, 58 : WIDTH - 22]
    drawn = is_of(rows, COLOURS[0]).any(0).mean()
    assert drawn == pytest.approx(share, abs=0.12) and (drawn == 1) == (number == 0)


def test_the_picture_grows_with_its_names():
    values = [0.5] * 6
    assert pixels({"a": values, "b": values}).shape == (HEIGHT, WIDTH, 3)
    picture = pixels({f"an encoder with a name, {n}": values for n in range(12)})
    assert len(picture) > HEIGHT
    below = (picture[-20:] < 100).all(-1)
    assert below[:-4].any() and not below[-2:].any()  # the last names, whole


def test_curves_may_have_a_point_or_none():
    """In each style: as an encoder that failed, or a single amount of labels."""
    pixels({f"c{n}": [None] * 6 if n % 2 else [None, 1.0, *[None] * 4] for n in range(20)})


def test_error_bars_stay_between_the_axis_and_the_title():
    """However long: and no accuracy is above 100 %."""
    ticks, values = ["1", "2"], {"a": [50.0, 90.0], "b": [45.0, None]}
    spreads = {"a": [200.0, 15.0], "b": [3.0, 3.0]}
    for y_label, whole in (("loss", True), ("accuracy, %", False)):
        picture = np.asarray(line_chart("T", "labels", ticks, values, y_label, spreads)).astype(int)
        bars = is_of(picture, COLOURS[0])
        assert not bars[: TOP - 2].any()
        first = bars[: HEIGHT - BOTTOM + 2, LEFT - 10 : LEFT + 10].any(1)
        assert first[TOP + 5 : HEIGHT - BOTTOM - 60].mean() > 0.9 - 0.3 * whole
        assert not bars[HEIGHT - BOTTOM + 2 : HEIGHT - 50].any()  # ticks and label
