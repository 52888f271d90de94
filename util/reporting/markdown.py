"""The Markdown that this project's own tables are written in, as HTML."""

import re
from html import escape

from util.reporting.page import table

_RULE = re.compile(r"^\|[\s:|-]+\|?$")


def to_html(text: str) -> str:
    """Headings, tables, lists and paragraphs; everything else is text, and none of it is HTML."""
    blocks = re.split(r"\n\s*\n", text.strip())
    return "\n".join(_block(block.splitlines()) for block in blocks if block.strip())


def _block(lines: list[str]) -> str:
    first = lines[0]
    if first.startswith("#"):
        heading = f"<h3>{_inline(first.lstrip('#').strip())}</h3>"
        return heading + (_block(lines[1:]) if lines[1:] else "")
    if first.startswith("|"):
        rows = [line for line in lines if line.startswith("|")]
        rest = [line for line in lines if not line.startswith("|")]
        return _table(rows) + (_block(rest) if rest else "")
    if first.startswith("- "):
        return f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    if any(line.startswith("|") for line in lines):
        before = [line for line in lines if not line.startswith("|")]
        after = [line for line in lines if line.startswith("|")]
        return _block(before) + (_block(after) if after else "")
    return f"<p>{'<br>'.join(_inline(line) for line in lines)}</p>"


def _table(lines: list[str]) -> str:
    rows = [_cells(line) for line in lines if not _RULE.match(line)]
    head, body = rows[0], rows[1:]
    return table(head, [[_inline(cell) for cell in row] for row in body], is_html=True)


def _cells(line: str) -> list[str]:
    """The cells of a row; a | inside one is written \\| and stays."""
    parts = re.split(r"(?<!\\)\|", line.strip().removeprefix("|").removesuffix("|"))
    return [part.strip().replace("\\|", "|") for part in parts]


def _inline(text: str) -> str:
    text = escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
