"""Scenes (tools/scenes.py) as images of one class each: the one that covers most pixels."""

import json
import os
from collections import defaultdict

from util.errors import UsageError


def largest_objects(folder: str, split: str) -> tuple[list[str], list[int], list[str]]:
    """File names of the scenes that have an object, their classes by number, the classes' names.

    A scene's class is the one whose objects have the most visible pixels, crowds included; of
    equals the first.

    Raises:
        UsageError: a folder that tools.scenes did not write, or not to its end.
    """
    path = os.path.join(folder, f"instances_{split}.json")
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        pixels: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for about in content["annotations"]:
            pixels[about["image_id"]][about["category_id"] - 1] += about["area"]
        classes = [category["name"] for category in content["categories"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--data_path {folder} has no scenes to read ({type(error).__name__}: {error}): make "
            f"them with python -m tools.scenes {folder}"
        ) from None
    seen = sorted(pixels)
    largest = [min(pixels[i], key=lambda label: (-pixels[i][label], label)) for i in seen]
    return [names[i] for i in seen], largest, classes
