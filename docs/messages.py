"""Lists every message with which a program may end: python docs/messages.py writes messages.md."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {  # the first that a file's path begins with
    "reproduc": "The paper's tables", "submitit": "SLURM", "tools": "Tools", "exports": "Tools",
    "util/cluster": "Several processes", "util/data/dense": "Label maps and COCO files",
    "util/data": "Images, folders, lists, shards", "encoders": "Checkpoints and encoders",
    "util/weights": "Checkpoints and encoders", "util/training": "Training and resuming",
    "engine": "Training and resuming", "models": "The method's flags", "main": "The mains",
    "heads": "The mains", "": "Everywhere",
}  # fmt: skip
HEAD = """# Messages

Every line with which a program ends on purpose, by what it is about; … stands for names and
numbers. Each says what to do; where no message helps: [trouble-shooting](troubleshooting.md).
Written by `python docs/messages.py`.
"""


def words(node: ast.expr) -> str:
    """The text of a message, … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
    if isinstance(node, ast.BinOp):
        return words(node.left) + (words(node.right) if isinstance(node.op, ast.Add) else "")
    return "…"


def messages(path: Path) -> list[str]:
    """What a file ends a program with: `UsageError`, `RunError`, and a parser's `error`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        of_parser = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in (
            "parser.error", "self.error",
        )  # fmt: skip
        if of_parser or ast.unparse(node.func) in ("UsageError", "RunError"):
            found.append(" ".join(words(node.args[0]).split()))
    # A message that is handed on has no words of its own.
    return sorted({text for text in found if sum(map(str.isalpha, text)) > 8})


def page() -> str:
    """messages.md, as the code is now."""
    chapters: dict[str, list[str]] = {title: [] for title in CHAPTERS.values()}
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("tests/", "benchmarks/", "docs/", ".", "demo", "build/")):
            continue
        title = next(title for start, title in CHAPTERS.items() if name.startswith(start))
        chapters[title] += messages(path)
    parts = [HEAD]
    for title, found in chapters.items():
        lines = "\n".join(f"- `{text.replace('`', chr(39))}`" for text in sorted(set(found)))
        parts += [f"\n## {title}\n\n{lines}\n"] if found else []
    return "".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "messages.md").write_text(page())
