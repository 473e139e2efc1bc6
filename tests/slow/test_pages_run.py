"""Every page of the documentation runs; tests/test_pages.py has the README."""

from pathlib import Path

import pytest

from doc_blocks import PAGES, ROOT, SHELL, blocks_of
from run_pages import make_place, run_page

RUN = [
    page
    for page in PAGES
    if page.name != "README.md" or page.parent != ROOT
    if any(b.why is None and b.language in (*SHELL, "python") for b in blocks_of(page))
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_runs(page: Path, place, tmp_path, monkeypatch):
    run_page(page, place, tmp_path, monkeypatch)
