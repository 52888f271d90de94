"""argparse with `@file`, errors of one line, and what a command line itself says."""

import argparse
import difflib
import importlib.util
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence

from util.errors import EXIT_USAGE
from util.flags import defaults
from util.flags.defaults import Share
from util.flags.settings import COMMAND_LINE

# A word as the shell has it: characters, escapes and quoted parts.
_WORD = re.compile(r"""(?:[^\s"'\\]|\\.|"(?:\\.|[^"\\])*"|'[^']*')+""")


# By a flag, the @file in which it stood: of a command line that a launcher has written out.
WRITTEN_OUT: dict[str, str] = {}


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors take one line, and whose `@file` holds flags and # comments.

    A file may name further ones, as seen from its own folder; of a flag's values the last counts.
    A ~ that begins a value is the home folder.
    """

    def __init__(self, *, description: str):
        super().__init__(
            description=description, allow_abbrev=False, formatter_class=_HelpFormatter
        )

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        # shlex's own comments begin inside a word, too: a path with a # would lose its end.
        words = _WORD.finditer(arg_line)
        comment = next((word.start() for word in words if word[0].startswith("#")), None)
        try:
            return shlex.split(arg_line[:comment])
        except ValueError as error:
            self.error(f"argument file: {error}: {arg_line.strip()}")

    def parse_known_args(self, args=None, namespace=None):
        argv = sys.argv[1:] if args is None else args
        return super().parse_known_args([word for word, _ in self._expanded(argv)], namespace)

    def tell_defaults(self, kinds: Mapping[str, Mapping[str, Mapping[str, object]]]) -> None:
        """Say in the help which defaults depend on the data set or the model.

        Args:
            kinds: tables of defaults by `data set` or `model`, and by the name of one.
        """
        for action in self._actions:
            for kind, tables in kinds.items():
                text = defaults.in_words(tables, action.dest)
                if text and action.help and f"(by {kind}:" not in action.help:
                    action.help += f" (by {kind}: {text.replace('%', '%%')})"

    def sources(self, argv: Sequence[str]) -> dict[str, str]:
        """Where each given flag comes from: `command line` or `@FILE`, the last one's."""
        found = {}
        flags = {flag: action.dest for action in self._actions for flag in action.option_strings}
        for word, source in self._expanded(argv):
            name = word.partition("=")[0]
            if name in flags:
                found[flags[name]] = WRITTEN_OUT.get(name, source)
        return found

    def files_of_flags(self, argv: Sequence[str]) -> dict[str, str]:
        """The @file in which a flag stands, by the flag, whoever's it is; none of those that the
        command line itself has, later."""
        found = {}
        for word, source in self._expanded(argv):
            if word.startswith("--"):
                found[word.partition("=")[0]] = source
        return {flag: source for flag, source in found.items() if source != COMMAND_LINE}

    def is_given(self, name: str, argv: Sequence[str]) -> bool:
        return name in self.sources(argv)

    def _expanded(
        self, argv: Sequence[str], file: str = "", inside: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, str]]:
        """Every word of a command line, those of its @files in their place, and where it stands.

        Args:
            file: whose words these are; empty: the command line's. inside: it, and those that
                name it.
        """
        for word in argv:
            if not word.startswith("@"):
                yield expand_home(word), f"@{file}" if file else COMMAND_LINE
                continue
            path = os.path.expanduser(word[1:])
            path = os.path.normpath(os.path.join(os.path.dirname(file), path))
            if path in inside:
                self.error(f"the @file {path} names itself: take that line out")
            yield from self._expanded(self._words(path), path, (*inside, path))

    def _words(self, path: str) -> list[str]:
        """The words of a file of arguments."""
        try:
            with open(path, encoding="utf-8-sig") as file:  # some editors begin with a mark
                lines = file.read().splitlines()
        except OSError as error:
            self.error(f"the @file {path} cannot be read ({error.strerror})")
        except UnicodeDecodeError:
            self.error(f"the @file {path} is no text: check what stands behind the @")
        return [word for line in lines for word in self.convert_arg_line_to_args(line)]

    def groups(self) -> dict[str, list[str]]:
        """The flags' names by their group's title, in the order of the help."""
        groups = {g.title: [a.dest for a in g._group_actions] for g in self._action_groups}
        return {title: list(dict.fromkeys(names)) for title, names in groups.items() if names}

    def error(self, message: str):
        typed = re.search(r"unrecognized arguments: (--\w+)", message)
        if typed and (near := difflib.get_close_matches(typed[1], self._option_string_actions, 1)):
            message += f" (did you mean {near[0]}?)"
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def expand_home(word: str) -> str:
    """`~/x`, `--flag=~/x` and `NAME=~/x` with the home folder in the place of ~ (or of ~name).

    A shell does so at the start of a word only, and nobody does in an @file.
    """
    name, equals, rest = word.partition("=~")
    if equals and re.fullmatch(r"[\w.-]+", name):
        return f"{name}={os.path.expanduser('~' + rest)}"
    return os.path.expanduser(word)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default where there is one, and commands as they stand."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = action.const is not None or "(default:" in (action.help or "")
        if is_told or action.default in (None, "", [], argparse.SUPPRESS):
            return action.help
        return super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = textwrap.dedent(text).split("\n\n")
        return "\n\n".join(
            textwrap.indent(textwrap.dedent(part), "    ")
            if part.startswith((" ", "python ", "torchrun "))
            else super(_HelpFormatter, self)._fill_text(part, width, indent)
            for part in parts
        )


def number(kind: type, low: float, high: float = float("inf")) -> Callable[[str], float]:
    """An argparse type: an int or float between low and high, both included."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:  # NaN, too
            bound = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is not {bound}")
        return value

    parse.__name__ = kind.__name__
    return parse


def epochs_or_share(text: str) -> float:
    """An argparse type: epochs, a number of at least 0, or a `Share` of the run such as `5%`."""
    if text.endswith("%"):
        return Share(number(float, 0, 100)(text[:-1]) / 100)
    return number(float, 0)(text)


def loss_or_share(text: str) -> float | str:
    """An argparse type: a loss of at least 0, a share of another one such as `80%`, or `auto`."""
    if text.endswith("%"):
        return f"{number(float, 0)(text[:-1]):g}%"
    return text if text == "auto" else number(float, 0)(text)


SERVICES = ("wandb", "trackio")


def service(text: str) -> str:
    """An argparse type: a service that keeps a run's numbers, or SERVICE:PROJECT; empty: none."""
    name = text.partition(":")[0]
    if text and name not in SERVICES:
        raise argparse.ArgumentTypeError(f"{text} is not {' or '.join(SERVICES)}, or NAME:PROJECT")
    if text and importlib.util.find_spec(name) is None:
        raise argparse.ArgumentTypeError(f"{name} is not installed: pip install {name}")
    return text


# ----------------------------------------------------------------- a command line's own words

RATES = ("--lr", "--blr")


def gives(word: str, flag: str) -> bool:
    """Whether a word of a command line is a flag, alone or with its value."""
    return word == flag or word.startswith(flag + "=")


def is_given(flag: str, argv: Sequence[str]) -> bool:
    """Whether a command line has a flag, alone or with its value."""
    return any(gives(word, flag) for word in argv)


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value that the last of a flag's mentions has; None: there is none."""
    found = None
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if gives(word, flag):
            found = word.partition("=")[2] if "=" in word else following
    return found


def refuse_second_rate(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """End with an error where the command line itself, not its @files, gives a rate twice."""
    for flag in RATES:
        if sum(gives(word, flag) for word in argv) > 1:
            parser.error(f"{flag} is given twice: keep one")


def last_rates(argv: Sequence[str]) -> list[str]:
    """A command line with its @files written out, without the rates that a later one replaces."""
    kept = list(argv)
    for flag in RATES:
        places = [place for place, word in enumerate(kept) if gives(word, flag)]
        for place in reversed(places[:-1]):
            del kept[place : place + (2 if kept[place] == flag else 1)]
    return kept
