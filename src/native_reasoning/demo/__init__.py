"""The embedded lab: a tiny base model and procedural tasks, so that everything runs offline.

:mod:`.tasks` makes the questions and answers, :mod:`.tokenizer` the word-level tokenizer, and
:mod:`.pretrain` the base model that lies in ``base/``. Importing this package imports no torch.
"""

from pathlib import Path

from native_reasoning.demo.tasks import DEMO, documents, final_digit, make_rows

__all__ = ["DEMO", "base_path", "documents", "final_digit", "make_rows"]


def base_path() -> Path:
    """The folder of the embedded base model and its tokenizer: an ordinary Hugging Face folder."""
    return Path(__file__).parent / "base"
