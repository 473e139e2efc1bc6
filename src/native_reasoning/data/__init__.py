"""Any file of questions and answers becomes rows, and rows become token ids.

    source --(sources)--> rows --(shapes)--> prompt and answer --(loading)--> Examples + report

``load_examples`` is the usual door; ``load_rows`` gives the raw rows it starts from.
"""

from native_reasoning.data.loading import (
    DataReport,
    Examples,
    content_hash,
    load_examples,
    with_dropped,
)
from native_reasoning.data.sources import load_rows

__all__ = ["DataReport", "Examples", "content_hash", "load_examples", "load_rows", "with_dropped"]
