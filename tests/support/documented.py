"""The commands in README.md, CONTRIBUTING.md and docs/, as words."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHECKED = ("python", "torchrun", "srun")  # other programs' commands are theirs


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks, continued ones whole, without comments."""
    text = "\n".join(re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S))
    text = re.sub(r"^# MAE\n.*?^# here\n", "", text, flags=re.M | re.S)  # its own commands
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


COMMANDS = sorted({(page.name, line) for page in PAGES for line in commands(page)})


def program(words: list[str]) -> tuple[str, list[str]] | None:
    """A command's module and its flags; None: it is not ours, or has flags left out."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if not words or words[0] not in CHECKED:
        return None
    names = [i for i, word in enumerate(words) if word.endswith(".py") or word.startswith("tools.")]
    if not names:
        return None
    name = words[names[0]].removesuffix(".py").replace("/", ".")
    return name, [word for word in words[names[0] + 1 :] if word not in ("…", "...")]
