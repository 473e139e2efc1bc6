"""The embedded base model and its two tasks, so that everything runs offline.

:mod:`.tasks` makes questions and answers; ``base/`` is a Llama of 0.14 million parameters, which
``benchmarks/lab/pretrain.py`` made. Importing this package imports no torch.
"""

from pathlib import Path

from native_reasoning.demo.tasks import make_rows

__all__ = ["base_path", "make_rows"]


def base_path() -> Path:
    """The folder of the embedded base model and its tokenizer: an ordinary Hugging Face folder."""
    return Path(__file__).parent / "base"
