"""Which settings of ours were chosen by looking at runs, and at which seeds: numbers of those seeds
flatter the choice, new seeds do not."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """A setting that the paper leaves open, and what it was chosen on.

    Args:
        scales: of reproduce.py that use it on the data that it was chosen on.
        seeds: of the runs that were looked at. where: they are written down there.
    """

    what: str
    scales: tuple[str, ...]
    data: str
    seeds: tuple[int, ...]
    where: str


CHOICES = (
    Choice("learning rate, batch, crops and length of the demo's pre-training", ("demo",),
           "digits", (0,), "benchmarks/LOG.md, the demo scale"),
    Choice("ε of Assumption 3, a share that gives about what earlier values were chosen as",
           ("demo", "small"), "digits and Fashion-MNIST", (0,), "RESULTS.md, small runs"),
    Choice("the patch embedding's unit variance in small models", ("demo",),
           "digits", (0,), "models_mae.py"),
    Choice("Eq. 10 within an image, not over the batch (--club_negatives)", ("small",),
           "Fashion-MNIST", (0, 1, 2), "RESULTS.md, Fashion-MNIST"),
    Choice("L_min followed above zero only (--club_floor batch)", ("small",),
           "Fashion-MNIST", (0,), "benchmarks/LOG.md, L_min below zero"),
    Choice("the paper's λ1 and λ2 for small images, too; τ = 0.07; no head; the class token",
           ("small",), "Fashion-MNIST", (0, 1, 2), "RESULTS.md, Fashion-MNIST"),
    Choice("rates and lengths of fine-tuning and probes (recipes/small, recipes/demo)",
           ("small", "demo"), "the same images", (0,), "not kept; 0 is the default seed"),
)  # fmt: skip


def lines(scale: str, seeds: Sequence[int]) -> list[str]:
    """Markdown lines: the choices that concern a scale, and which of its seeds are new to them."""
    found = [choice for choice in CHOICES if scale in choice.scales]
    if not found:
        return ["", "None of our settings was chosen on this data (those of small images were: "
                "reproduction/choices.py)."]  # fmt: skip
    told = ["", "Settings that the paper leaves open, and the seeds that they were chosen on:", ""]
    for choice in found:
        listed = ", ".join(map(str, choice.seeds))
        told.append(f"- {choice.what}: {choice.data}, seed {listed} ({choice.where})")
    used = {seed for choice in found for seed in choice.seeds}
    old, new = [s for s in seeds if s in used], [s for s in seeds if s not in used]
    if not old:
        return [*told, "", f"Seeds {_listed(new)} are new to all of these choices."]
    line = f"So seeds {_listed(old)} of this table are no test of those choices"
    line += f"; seeds {_listed(new)} are." if new else "."
    first = max(*used, *seeds) + 1
    line += f" New seeds confirm them: --seeds {first} {first + 1} {first + 2} …"
    return [*told, "", line]


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
