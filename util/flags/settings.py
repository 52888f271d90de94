"""Where each flag's value comes from, and how it agrees with what a checkpoint says."""

import argparse
import logging
from collections.abc import Mapping, Sequence

from util.errors import UsageError
from util.flags.defaults import shown

log = logging.getLogger(__name__)

# Flags that change where and how fast a run is, not what comes out of it.
_WITHOUT_EFFECT = {
    "output_dir", "resume", "device", "compile", "log_every", "log_seconds", "dist_timeout",
    "num_workers", "pin_mem", "download", "save_every_epochs", "save_every_steps",
    "keep_checkpoints", "keep_epochs", "cache_dir", "knn_every", "visualize", "visualize_stats",
    "max_bad_images", "max_rollbacks", "eval", "test_every", "grad_checkpointing", "help",
    "monitor_every", "monitor_share", "log_to",
}  # fmt: skip
COMMAND_LINE = "command line"  # the source of what the user typed
GIVEN = (COMMAND_LINE, "@")  # how the source of what the user gave begins
AUTO = "auto"  # the source of what such a flag has taken


class Settings:
    """Knows where the values of a run's flags come from.

    Args:
        groups: the flags' names by the title of their group in `--help`.
        sources: `command line`, `@FILE`, `checkpoint`, `model`, `data set` or `auto`, by the flag's
            name; a flag without one has the parser's default.
    """

    def __init__(self, groups: Mapping[str, Sequence[str]], sources: Mapping[str, str]):
        self.groups, self.sources = groups, dict(sources)
        self.given: dict[str, list[float]] = {}  # --mean and --std as the user wrote them

    def is_given(self, name: str) -> bool:
        """Whether the user gave the flag, on the command line or in an @FILE."""
        return self.sources.get(name, "").startswith(GIVEN)

    def refuse(self, where: str, *names: str) -> None:
        """Raise UsageError for those of these flags that the user typed: they would do nothing.

        An @FILE may hold them, which serves several runs.

        Args:
            where: the rest of that sentence, as "without --dense".
        """
        typed = [name for name in names if self.sources.get(name) == COMMAND_LINE]
        if typed:
            do, them = ("do", "them") if typed[1:] else ("does", "it")
            raise UsageError(f"{self.named(*typed)} {do} nothing {where}: leave {them} away")

    def named(self, *names: str) -> str:
        """Those of these flags that the main has, as `--a, --b and --c`; empty: it has none."""
        known = [name for group in self.groups.values() for name in group]
        flags = [f"--{name}" for name in names if name in known]
        return " and ".join([", ".join(flags[:-1]), flags[-1]] if flags[1:] else flags)

    def values(self, args: argparse.Namespace) -> dict[str, object]:
        """The values of the flags that can change a run's numbers, by name."""
        names = [name for group in self.groups.values() for name in group]
        return {n: getattr(args, n) for n in names if n not in _WITHOUT_EFFECT}

    def every(self, args: argparse.Namespace) -> dict[str, object]:
        """The values of all flags, by name, as JSON can have them."""
        names = [name for group in self.groups.values() for name in group if name != "help"]
        plain = (bool, int, float, str, list, tuple, type(None))
        values = {name: getattr(args, name) for name in names if hasattr(args, name)}
        return {n: v if isinstance(v, plain) else str(v) for n, v in values.items()}

    def table(self, args: argparse.Namespace) -> dict[str, str]:
        """Those values by group, each with its source where it is not the parser's default."""
        values, lines = self.values(args), {}
        for title, names in self.groups.items():
            cells = [self._cell(name, values[name]) for name in names if name in values]
            if cells:
                lines[title] = ", ".join(cells)
        return lines

    def _cell(self, name: str, value: object) -> str:
        source = f" [{self.sources[name]}]" if name in self.sources else ""
        return f"{name} {shown(value)}{source}"

    def changes(self, args: argparse.Namespace, saved: Mapping[str, object]) -> list[str]:
        """A line for each flag that was set to another value than in a checkpoint's namespace."""
        return [
            f"--{name} {shown(value)} (the checkpoint's run: {shown(saved[name])})"
            for name, value in self.values(args).items()
            if name in saved
            and shown(saved[name]) != shown(value)
            and self.sources.get(name) != AUTO
        ]


def take_from_checkpoint(args: argparse.Namespace, config: Mapping[str, object]) -> None:
    """Give the flags that the user left open the values that a checkpoint's encoder was given.

    A flag that contradicts it is obeyed, and one line names it.

    Args:
        config: `model`, `input_size`, `in_chans`, `mean`, `std` and `value_range`, as far as they
            are known.
    """
    contradicted = []
    for name, values in args.settings.given.items():  # for whatever channels the checkpoint has
        setattr(args, name, values)
    for name in ("model", "in_chans", "input_size", "mean", "std", "value_range"):
        value = config.get(name)
        if value is None or not hasattr(args, name):
            continue
        if not args.settings.is_given(name):
            setattr(args, name, list(value) if isinstance(value, list | tuple) else value)
            args.settings.sources[name] = "checkpoint"
        elif _whole(name, getattr(args, name), args) != _whole(name, value, args):
            contradicted.append(f"--{name} {shown(getattr(args, name))}, not {shown(value)}")
    if contradicted:
        log.warning(
            "otherwise than the checkpoint was trained, as asked: %s", "; ".join(contradicted)
        )
    fit_channels(args)


def _whole(name: str, value: object, args: argparse.Namespace) -> str:
    """A value with what its short form leaves out: 224 is 224 224, one mean is every channel's."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) == 1:
        values *= {"input_size": 2, "mean": args.in_chans, "std": args.in_chans}.get(name, 1)
    return shown(values)


def fit_image_flags(args: argparse.Namespace) -> None:
    """Check --value_range, --mean and --std as they are given; a checkpoint comes later.

    Raises:
        UsageError: numbers that cannot be meant.
    """
    settings = args.settings
    settings.given = {n: list(getattr(args, n)) for n in ("mean", "std") if settings.is_given(n)}
    if args.value_range and not args.value_range[0] < args.value_range[1]:
        raise UsageError("--value_range takes a number and a higher one: those that become 0 and 1")
    fit_channels(args, settings.is_given("in_chans") or not _names_checkpoint(args))


def _names_checkpoint(args: argparse.Namespace) -> bool:
    """Whether a checkpoint is named that will tell the images' channels."""
    named = [getattr(args, name, "") for name in ("finetune", "checkpoint")]
    named += getattr(args, "checkpoints", [])
    if getattr(args, "eval", False) or getattr(args, "predict", ""):
        named.append(args.resume)
    return bool(set(named) - {"", "untrained", "pixels"})


def fit_channels(args: argparse.Namespace, is_final: bool = True) -> None:
    """Make --mean and --std one number per channel; defaults are averaged for other channels.

    Args:
        is_final: whether --in_chans is; else a checkpoint may still change it.

    Raises:
        UsageError: given numbers that do not fit --in_chans.
    """
    for name in ("mean", "std"):
        values = list(args.settings.given.get(name) or getattr(args, name))
        if len(values) != args.in_chans and not args.settings.is_given(name):
            values = [sum(values) / len(values)]
        if len(values) not in (1, args.in_chans):
            if not is_final:
                continue
            raise UsageError(
                f"--{name} has {len(values)} numbers for --in_chans {args.in_chans}: give one, "
                "or one per channel"
            )
        setattr(args, name, values * args.in_chans if len(values) == 1 else values)
