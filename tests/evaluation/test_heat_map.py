"""The picture of a matrix: each cell in its number's colour, and everything inside the picture."""

import math

import numpy as np
import pytest

from util.evaluation.heat_map import MARGIN, NOTHING, RAMP, colour, heat_map


def drawn(values, name="blocks of a", title="title"):
    ticks = [[str(i) for i in range(count)] for count in (len(values), len(values[0]))]
    picture = heat_map([title, "below"], values, (name, ticks[0]), (name, ticks[1]))
    return np.asarray(picture).astype(int)


def cells_of(pixels, colours):
    """Where a colour fills the most pixels: the middle of its area, for each."""
    for wanted in colours:
        rows, columns = np.nonzero((pixels == wanted).all(2))
        yield rows.mean(), columns.mean(), len(rows)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (5, 13), (33, 33)])
def test_cells_stand_in_their_places_the_first_row_below(rows, columns):
    values = [[0.5] * columns for _ in range(rows)]
    values[0][0], values[-1][0], values[0][-1] = 0.93, 0.07, math.nan
    pixels = drawn(values)
    found = list(cells_of(pixels, (colour(0.93), colour(0.07), NOTHING)))
    (low_y, left_x, size), (high_y, also_left_x, _), (also_low_y, right_x, _) = found
    assert abs(left_x - also_left_x) < 8 and abs(low_y - also_low_y) < 8
    assert high_y < low_y and left_x < right_x and size > 400


def test_colours_run_along_the_ramp_and_stop_at_its_ends():
    assert [colour(i / 4) for i in range(5)] == RAMP
    assert colour(-0.1) == RAMP[0] and colour(1.2) == RAMP[-1]
    light = [sum(colour(i / 50)) for i in range(51)]
    assert light == sorted(light)


@pytest.mark.parametrize("values", [[[1.0]], [[0.2, 1.0], [1.0, -0.004]]])
def test_long_names_stay_inside_and_off_the_title(values):
    short = drawn(values, "x", "t" * 40)
    pixels = drawn(values, "blocks of a checkpoint with a very long name " * 4, "t" * 40)
    assert pixels.shape == short.shape
    border = np.concatenate([pixels[:3].ravel(), pixels[-3:].ravel(), pixels[:, -3:].ravel()])
    assert (border == 255).all() and (pixels[:, :3] == 255).all()
    title = slice(0, MARGIN + 34)
    assert (pixels[title] == short[title]).all()
