"""Checks of values that several files share; what they raise names the flag and the fix."""

from collections.abc import Sequence

from util.errors import UsageError


def check_one_of(flag: str, value: str, known: Sequence[str]) -> None:
    """Raise UsageError where a flag's value is not among those that are known."""
    if value not in known:
        raise UsageError(f"{flag} {value} is unknown: use {', '.join(known)}")


def check_compression(amp: str, compression: str) -> None:
    """fp16 has no room below 6e-8, where many gradients are that no loss scaling has lifted.

    Args:
        amp: the value of --amp that is computed in. compression: of --grad_compression.

    Raises:
        UsageError: gradients would be lost.
    """
    if compression == "fp16" and amp != "fp16":
        raise UsageError(
            f"--grad_compression fp16 loses small gradients, which --amp {amp} does not scale: "
            "use --grad_compression bf16, or --amp fp16"
        )


def image_size(
    img_size: int | Sequence[int], unit: int, what: str = "the patch of the model"
) -> tuple[int, int]:
    """The --input_size as (height, width) in pixels, from one number or two.

    Raises:
        UsageError: where `unit`, whose meaning `what` tells, does not divide it.
    """
    sizes = [img_size] if isinstance(img_size, int) else list(img_size)
    if len(sizes) not in (1, 2):
        raise UsageError(f"--input_size {sizes} takes one number, or a height and a width")
    height, width = sizes[0], sizes[-1]
    if min(height, width) < unit or height % unit or width % unit:
        raise UsageError(
            f"--input_size {height} {width} is not divisible by {unit} pixels, {what}: use "
            f"multiples of {unit}"
        )
    return height, width
