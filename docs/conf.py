"""Sphinx, for ``make docs``: the Markdown of the repository as a site in docs/_build.

The source folder is the repository, so that links between pages and to files are those that work
in an editor and on a code host. A link or an anchor that leads nowhere is an error. Tables of the
package and of benchmarks are made when the site is built: ``<!-- made by docs/make_cli.py -->``
becomes what ``page`` of that script returns.
"""

import re
import sys
from importlib import import_module
from pathlib import Path

from sphinx.application import Sphinx

import native_reasoning

ROOT = Path(__file__).parents[1]
MADE = re.compile(r"<!-- made by docs/(\w+)\.py.*?-->", re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)\)")

project = "native-reasoning"
version = release = native_reasoning.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "benchmarks/**.md"]
exclude_patterns = [".venv*", "docs/_build"]
smartquotes = False  # -- is a flag here
html_theme = "furo"
html_title = "native-reasoning"
highlight_language = "none"
myst_heading_anchors = 4
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
autodoc_member_order = "bysource"
# Tables of benchmarks/lab begin with a smaller heading. tests/test_docs.py sees to it that every
# page stands in the index.
suppress_warnings = ["myst.header", "toc.not_included"]


sys.path.insert(0, str(ROOT / "docs"))


def completed(app: Sphinx, page: str, source: list[str]) -> None:
    """Puts in what is made, and makes a link to a folder of the repository its text: there is no
    page to lead to."""
    folder = (ROOT / page).parent
    text = MADE.sub(lambda found: import_module(found[1]).page(), source[0])
    source[0] = LINK.sub(lambda found: found[1] if (folder / found[2]).is_dir() else found[0], text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the above."""
    app.connect("source-read", completed)
    return {"parallel_read_safe": True}
