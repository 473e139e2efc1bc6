"""The embedded base model, its two tasks, and four methods on them (``nrt demo``), offline.

``make_rows`` (tasks) makes questions and answers, ``run_demo`` (race) trains. ``base/`` is a
Llama of 0.14 M parameters from benchmarks/lab/pretrain.py. Importing this package imports no torch.
"""

from pathlib import Path

from native_reasoning.demo.tasks import make_rows

__all__ = ["base_path", "make_rows"]


def base_path() -> Path:
    """The folder of the embedded base model and its tokenizer: an ordinary Hugging Face folder."""
    return Path(__file__).parent / "base"
