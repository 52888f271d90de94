"""A JSON in COCO's format as tools write it: read, made regular, its mistakes named and counted.

What is left of an annotation is what can be believed: a polygon that is none is dropped without its
object, an object without a mask keeps its box, one without a box gets it from the mask.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from util.data.dense.rle import decode_rle, fill_polygons, sides_of
from util.errors import UsageError, first_line

SLACK = 2.0  # pixels by which a mask and its box may differ, whose corners some tools round
CORNERS = "(COCO's bbox is x, y, width, height: are these the corners?)"
NO_PIXEL = "that cover no pixel, not trained on (COCO's coordinates are pixels, not shares)"
NO_MASK = "without a mask: trained on without the mask loss, no part of the masks' AP"
YES, NO = (True, 1, "1", "true"), (None, False, 0, "0", "false", "")

Note = Callable[[str], None]  # is told what is wrong with the annotation at hand


class _LeftOutError(Exception):
    """What is wrong with an annotation of which nothing can be used."""


@dataclass
class _Shape:
    """Polygons or an RLE, its bounds x0, y0, x1, y1 in pixels, and the number of its pixels.

    The number is None where it is not yet known; it is not 0 then.
    """

    encoded: dict | list
    bounds: tuple[float, float, float, float]
    num_pixels: int | None


# ----------------------------------------------------------------------------------- the whole file


def read_annotations(path: str) -> dict:
    """A JSON file's `images`, `annotations` and `categories`, with whole numbers for ids and sizes.

    Raises:
        UsageError: damaged, empty, or with ids that are none or repeat; the line says which.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:  # some editors begin with a mark
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {first_line(error)}") from None
    needed = {
        "categories": {"id": _whole, "name": _name},
        "images": {"id": _whole, "file_name": _name, "height": _side, "width": _side},
        "annotations": {"id": _whole, "image_id": _whole, "category_id": _whole},
    }
    for part, kinds in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UsageError(f"{path} has no list of {part}: it is not in COCO's format")
        for number, entry in enumerate(entries):  # in place: there may be a million
            entries[number] = _checked(entry, kinds, part, path)
        _check_unique([entry["id"] for entry in entries], part, path)
    for part in ("categories", "images"):
        if not content[part]:
            raise UsageError(f"{path} is empty: it has no {part}")
    known = {category["id"] for category in content["categories"]}
    strange = [a["id"] for a in content["annotations"] if a["category_id"] not in known]
    if strange:
        raise UsageError(
            f"{path}: {len(strange)} annotations are of a category that it does not list (the "
            f"first is annotation {strange[0]}): add the category"
        )
    return content


def _checked(entry: object, kinds: dict[str, Callable], part: str, path: str) -> dict:
    """An entry with those of its values that it needs as they should be."""
    known = entry if isinstance(entry, dict) else {}
    values = {key: kind(known.get(key)) for key, kind in kinds.items()}
    wrong = next((key for key, value in values.items() if value is None), None)
    if wrong is not None:
        wanted = "a text" if kinds[wrong] is _name else "a whole number"
        raise UsageError(
            f"{path}: one of its {part} has no proper {wrong}, {wanted}: {str(entry)[:200]!r}"
        )
    return known | values


def _check_unique(ids: list[int], part: str, path: str) -> None:
    if len(set(ids)) < len(ids):
        seen: set[int] = set()
        again = next(number for number in ids if number in seen or seen.add(number))
        raise UsageError(f"{path}: more than one of its {part} has the id {again}: ids are unique")


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _side(value: object) -> int | None:
    """Pixels, which some tools write as a text."""
    side = _whole(_number(value))
    return side if side is not None and 0 < side < 2**31 else None


def _name(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def sort_out(content: dict, path: str) -> tuple[list[dict], list[dict], list[str]]:
    """Annotations to train on, those to be evaluated against, and lines on what is wrong.

    They take the place of the content's own, which are gone then: there may be a million.

    Each has `bbox`, `area`, `iscrowd`, and a `segmentation` that may be None. What nobody could
    use is in neither. Objects without area or pixels and those outside of their image are not
    trained on, but count in an evaluation, as everywhere; crowds likewise.

    Raises:
        UsageError: no annotation covers a pixel.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    usable, truth, problems = [], [], defaultdict(list)
    annotations = content.pop("annotations")
    for place, about in enumerate(annotations):
        annotations[place] = None

        def note(problem: str, number: int = about["id"]) -> None:
            problems[problem].append(number)

        try:
            regular, is_usable = _regular(about, sizes.get(about["image_id"]), note)
        except _LeftOutError as error:
            note(f"{error}, left out")
            continue
        truth.append(regular)
        if is_usable and not regular["iscrowd"]:
            usable.append(regular)
    lines = [
        f"{len(ids)} annotations {problem} (the first: {ids[0]})"
        for problem, ids in problems.items()
    ]
    if truth and len(problems[NO_PIXEL]) == len(truth):
        raise UsageError(
            f"{path}: none of its {len(truth)} objects covers a pixel: COCO's coordinates are "
            "pixels, not shares of the image's sides: multiply them by its width and height"
        )
    return usable, truth, lines


# -------------------------------------------------------------------------------- one annotation


def _regular(about: dict, size: tuple[int, int] | None, note: Note) -> tuple[dict, bool]:
    """An annotation as it should be, and whether it can be trained on."""
    if size is None:
        raise _LeftOutError("of an image that is not listed")
    mask = _mask(about.get("segmentation"), size, note)
    bbox, is_good = _box(about.get("bbox"), mask, size, note)
    shape = mask or _polygons([_outline(bbox)], size)
    if shape.num_pixels == 0 and is_good:
        note(NO_PIXEL)
    area = _number(about.get("area"))
    if area is None or area <= 0:
        if about.get("area") is not None:
            note("whose area is no positive number, counted anew")
        area = float(_count(shape, size) or bbox[2] * bbox[3])
    values = dict(bbox=bbox, area=area, iscrowd=_crowd(about.get("iscrowd"), note))
    values["segmentation"] = mask.encoded if mask else None
    kept = {key: about[key] for key in ("id", "image_id", "category_id")}
    return kept | values, is_good and shape.num_pixels != 0


def _crowd(value: object, note: Note) -> int:
    value = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(value, list | dict):
        if value in YES:
            return 1
        if value in NO:
            return 0
    note("whose iscrowd is neither 0 nor 1, taken for 0")
    return 0


def _box(
    given: object, mask: _Shape | None, size: tuple[int, int], note: Note
) -> tuple[list[float], bool]:
    """x, y, width and height, and whether they are those of a box in the image."""
    values = given if isinstance(given, list) and len(given) == 4 else []
    bbox = [_number(value) for value in values]
    has_pixels = mask is not None and mask.num_pixels != 0
    problem = None
    if not bbox or None in bbox:
        problem = "without a bbox of four numbers"
    elif bbox[2] <= 0 or bbox[3] <= 0:
        problem = "whose box has no area"
    elif not _overlaps(bbox, size):
        problem = "whose box is outside of its image"
    elif has_pixels and _are_shares(bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]):
        problem = "whose box lies within the image's first pixel"
    if problem is None:
        _compare(bbox, mask if has_pixels else None, size, note)
        return bbox, True
    if mask is not None and (has_pixels or not bbox or None in bbox):
        note(f"{problem}, which is taken from the mask")
        x0, y0, x1, y1 = mask.bounds
        return [x0, y0, x1 - x0, y1 - y0], True
    if not bbox or None in bbox:
        raise _LeftOutError(f"{problem} and without a mask")
    note(f"{problem}, not trained on")
    return bbox, False


def _overlaps(bbox: list[float], size: tuple[int, int]) -> bool:
    x, y, width, height = bbox
    return x < size[1] and y < size[0] and x + width > 0 and y + height > 0


def _compare(bbox: list[float], mask: _Shape | None, size: tuple[int, int], note: Note) -> None:
    """Name a box that is not its mask's, or leaves the image."""
    x, y, width, height = bbox
    if max(-x, -y, x + width - size[1], y + height - size[0]) > SLACK:
        note(f"whose box leaves its image {CORNERS}")
    if mask is None:
        return
    left, top, right, bottom = mask.bounds
    over = x - left, y - top, right - (x + width), bottom - (y + height)
    if max(over) > SLACK:
        note("whose mask leaves its box, which is taken from the mask")
    elif min(over) < -SLACK:
        note(f"whose box is larger than its mask, from which it is taken {CORNERS}")


def _outline(bbox: list[float]) -> list[float]:
    x, y, width, height = bbox
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def outlined(about: dict) -> dict | list:
    """A regular annotation's mask, or else its box as a polygon."""
    mask = about["segmentation"]
    return [_outline(about["bbox"])] if mask is None else mask


def _number(value: object) -> float | None:
    """A finite number, which some tools write as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


# ------------------------------------------------------------------------------------------- masks


def _mask(given: object, size: tuple[int, int], note: Note) -> _Shape | None:
    """A `segmentation`; None where there is none that can be read."""
    if given is None or given in ([], {}, ""):
        note(NO_MASK)
        return None
    if isinstance(given, dict):
        return _rle(given, size, note)
    if not isinstance(given, list):
        note("whose segmentation is neither polygons nor an RLE, of which the box is kept")
        return None
    if not isinstance(given[0], list) or all(isinstance(p, list) and len(p) == 2 for p in given):
        given = [given]  # one polygon, or its points
    polygons = [polygon for polygon in map(_polygon, given) if polygon is not None]
    if not polygons:
        note("whose polygons are no lists of x and y, of which the box is kept")
        return None
    if len(polygons) < len(given):
        note("with a polygon that is no list of x and y, of which the others are kept")
    return _polygons(polygons, size)


def _polygon(given: object) -> list[float] | None:
    """x0, y0, x1, y1, … of at least three points."""
    try:
        values = np.asarray(given, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        return None
    is_good = len(values) >= 6 and len(values) % 2 == 0 and np.isfinite(values).all()
    return values.tolist() if is_good else None


def _polygons(polygons: list[list[float]], size: tuple[int, int]) -> _Shape:
    x0, y0 = (min(min(polygon[axis::2]) for polygon in polygons) for axis in (0, 1))
    x1, y1 = (max(max(polygon[axis::2]) for polygon in polygons) for axis in (0, 1))
    bounds = x0, y0, x1, y1
    shape = _Shape(polygons, bounds, None)
    if _are_shares(*bounds):
        shape.num_pixels = 0
    elif min(x0, y0) < 0 or x1 > size[1] or y1 > size[0] or max(map(_area, polygons)) < 4:
        _count(shape, size)  # others have pixels for certain
    return shape


def _are_shares(x0: float, y0: float, x1: float, y1: float) -> bool:
    """Whether bounds are within the image's first pixel: more likely shares of its sides."""
    return min(x0, y0) >= 0 and max(x1, y1) <= 1


def _area(polygon: list[float]) -> float:
    """By the shoelace formula."""
    x, y = np.array(polygon[::2]), np.array(polygon[1::2])
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])) / 2


def _count(shape: _Shape, size: tuple[int, int]) -> int:
    """The number of a shape's pixels, by the part of the image around its polygons."""
    if shape.num_pixels is None:
        x0, y0, x1, y1 = shape.bounds
        left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
        right, bottom = min(math.ceil(x1), size[1]), min(math.ceil(y1), size[0])
        shape.num_pixels = 0
        if left < right and top < bottom:
            moved = [np.reshape(polygon, (-1, 2)) - (left, top) for polygon in shape.encoded]
            shape.num_pixels = int(fill_polygons(moved, bottom - top, right - left).sum())
    return shape.num_pixels


def _rle(given: dict, size: tuple[int, int], note: Note) -> _Shape | None:
    values = {key: given.get(key) for key in ("size", "counts")}
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = [_whole(number) for number in value]
    try:
        if sides_of(values) != size:
            raise _LeftOutError("whose RLE is not of its image's size")
        mask = decode_rle(values)
    except (ValueError, MemoryError):
        note("whose RLE is damaged, of which the box is kept")
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    bounds = (0, 0, 0, 0)
    if len(rows):
        bounds = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return _Shape(values, bounds, int(mask.sum()))
