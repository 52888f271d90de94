"""A page of HTML that needs nothing else and no network: its frame, tables and texts."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

from util.reporting.style import SCRIPT, STYLE

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1>{head}</header>
<nav>{links}</nav>
<main>
{sections}
</main>
<footer>{foot}</footer>
<script>{script}</script>
</body>
</html>
"""


@dataclass
class Page:
    """A title, what stands below it, and sections, which the page lists at its top."""

    title: str
    head: str = ""
    foot: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)

    def add(self, title: str, *parts: str) -> None:
        """Add a section, unless there is nothing in it; parts are HTML."""
        text = "\n".join(part for part in parts if part)
        if text:
            self.sections.append((title, text))

    def html(self) -> str:
        """The whole page."""
        numbered = list(enumerate(self.sections))
        links = [f'<a href="#part-{n}">{escape(title)}</a>' for n, (title, _) in numbered]
        sections = [
            f'<section>\n<h2 id="part-{n}">{escape(title)}</h2>\n{text}\n</section>'
            for n, (title, text) in numbered
        ]
        return PAGE.format(
            title=escape(self.title), style=STYLE, script=SCRIPT, head=self.head, foot=self.foot,
            links="".join(links), sections="\n".join(sections),
        )  # fmt: skip


def write_page(path: str, page: Page) -> None:
    """Write it whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8", errors="replace") as file:
            file.write(page.html())
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def table(head: Sequence[str], rows: Iterable[Sequence[str]], is_html: bool = False) -> str:
    """A table that scrolls where it is wider than the page; a row's first cell is its heading.

    Args:
        is_html: cells are HTML, not text.
    """
    write = str if is_html else escape
    body = [
        f"<tr><th>{write(row[0])}</th>"
        f"{''.join(f'<td class=value>{write(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    ]
    if not body:
        return ""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(body)}</tbody></table></div>'


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of text, in the look of a class."""
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def folded(summary: str, html: str) -> str:
    """HTML behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>" if html else ""


def bullets(lines: Iterable[str], kind: str = "") -> str:
    """A list of texts, in the look of a class; empty without any."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""
