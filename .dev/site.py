"""What the site has beside the folder `docs`: the README as front page, the plugins' READMEs, and a list of decisions.

Links are written for people who read the files where they lie; here they are led to the pages that the files become.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))
    titles = [path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for path in decisions]
    listed = "\n".join(f"- [{title}]({path.name})" for title, path in zip(titles, decisions, strict=True))
    made = {
        "index.md": led(ROOT / "README.md", "index.md"),
        "decisions/index.md": f"# Decisions\n\nWhat was decided, why, and what follows from it.\n\n{listed}\n",
    }
    for readme in sorted(ROOT.glob("plugins/*/README.md")):
        page = f"plugins/{readme.parent.name}.md"
        made[page] = led(readme, page)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead the links of a page from `docs` to pages."""
    source = ROOT / "docs" / page.file.src_uri
    return led(source, page.file.src_uri, markdown) if source.is_file() else markdown


def led(source: Path, page: str, text: str | None = None) -> str:
    """A file's text with its links led to pages, as seen from one of them."""
    text = source.read_text(encoding="utf-8") if text is None else text
    up = "../" * page.count("/")

    def lead(link: re.Match[str]) -> str:
        target = page_of((source.parent / link[1]).resolve())
        return link[0] if target is None else f"]({up}{target}{link[2] or ''})"

    return LINK.sub(lead, text)


def page_of(path: Path) -> str | None:
    """The page that a file of the repository becomes."""
    inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None
    if inside is None:
        return None
    if inside == "README.md":
        return "index.md"
    if inside == "docs/decisions":
        return "decisions/index.md"
    plugin = re.fullmatch(r"plugins/([\w-]+)(/README\.md)?", inside)
    if plugin:
        return f"plugins/{plugin[1]}.md"
    return inside.removeprefix("docs/") if inside.startswith("docs/") else None
