"""Which column of a Hugging Face data set has the images, and which their classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from util.errors import UsageError

IMAGE, BINARY, CLASS, INTEGER, TEXT, OTHER = (
    "image", "binary", "class", "integer", "text", "other",
)  # fmt: skip
IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
LABEL_NAMES = ("label", "labels", "class", "target", "category", "cls", "class_name")


@dataclass(frozen=True)
class Column:
    """A column of a table. names: of its classes, where its features tell them."""

    name: str
    kind: str
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Columns:
    """Names: of the images' column, and of the classes'; empty: there is none, or none is named."""

    image: str = ""
    label: str = ""


def choose_columns(columns: Sequence[Column], given: Columns, split: str, where: str) -> Columns:
    """The columns of a split's images and labels.

    Args:
        given: by the flags. split: others than `train` and `val` take images without labels, too.

    Raises:
        UsageError: none that can be meant, or more than one.
    """
    image = _image(columns, given.image, where)
    label = _label([c for c in columns if c.name != image], given.label, split, where)
    return Columns(image, label)


def _image(columns: Sequence[Column], given: str, where: str) -> str:
    by_kind = [[c.name for c in columns if c.kind == kind] for kind in (IMAGE, BINARY)]
    if given:
        return _checked(
            given, columns, [*by_kind[0], *by_kind[1]], "--image_column", "images", where
        )
    found = by_kind[0] or by_kind[1]
    found = _one_of(found, IMAGE_NAMES)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"--data_path {where} has more than one column of images ({', '.join(found)}): name "
            "one with --image_column"
        )
    raise UsageError(
        f"--data_path {where} has no column of images, as bytes (its columns: {_named(columns)}): "
        "lists of pixels are no images; save it with an Image feature"
    )


def _label(columns: Sequence[Column], given: str, split: str, where: str) -> str:
    if given:
        known = [c.name for c in columns if c.kind in (CLASS, INTEGER, TEXT)]
        return _checked(given, columns, known, "--label_column", "labels", where)
    found = [c.name for c in columns if c.kind == CLASS]
    if not found:
        others = [c.name for c in columns if c.kind in (INTEGER, TEXT)]
        found = [name for name in others if name.lower() in LABEL_NAMES]
    found = _one_of(found, LABEL_NAMES)
    if len(found) == 1:
        return found[0]
    if split not in ("train", "val"):
        return ""
    if found:
        raise UsageError(
            f"--data_path {where} has more than one column of classes ({', '.join(found)}): name "
            "one with --label_column"
        )
    raise UsageError(
        f"--data_path {where} has no column that is certain to have the classes (its columns: "
        f"{_named(columns)}): name one with --label_column"
    )


def _one_of(found: list[str], names: Sequence[str]) -> list[str]:
    """Of several columns the one with a usual name, where there is one such."""
    usual = [name for name in found if name.lower() in names]
    return usual if len(usual) == 1 else found


def _checked(
    given: str, columns: Sequence[Column], known: list[str], flag: str, what: str, where: str
) -> str:
    if given in known:
        return given
    is_there = given in [c.name for c in columns]
    raise UsageError(
        f"{flag} {given}: {where} has "
        + (f"no {what} in that column" if is_there else "no such column")
        + f" (it can be {' or '.join(known) or 'none of them'})"
    )


def _named(columns: Sequence[Column]) -> str:
    return ", ".join(c.name for c in columns) or "none"


def class_names(names: Sequence[str]) -> list[str]:
    """The names of classes, each once: ImageNet's features have two cranes."""
    seen = [name for name in names if list(names).count(name) > 1]
    return [f"{name} ({i})" if name in seen else name for i, name in enumerate(names)]
