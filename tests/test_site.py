"""The docs build as a site: strictly, so that a link that leads nowhere is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_pages_are_there(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    plugins = {f"plugins/{path.parent.name}.html" for path in ROOT.glob("plugins/*/pyproject.toml")}
    docs = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages >= plugins | docs | {"index.html", "decisions/index.html"}


def test_links_of_the_front_page_lead_to_pages(site: Path) -> None:
    text = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="bench.html"' in text
    assert 'href="plugins/speculative.html"' in text
    assert 'href="docs/' not in text
