"""What the tests of the benchmarks share."""

import nltk
import pytest

from suite_data import write_all, write_punkt
from tiny import byte_tokenizer, tiny_model


@pytest.fixture(scope="session")
def nine(tmp_path_factory):
    """Local files of the nine benchmarks."""
    return write_all(tmp_path_factory.mktemp("nine"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """A folder with a random two-layer model without think tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """nltk has its file, and lm-eval does not look at the machine, which takes seconds."""
    monkeypatch.setattr(nltk.data, "path", [str(write_punkt(tmp_path / "nltk"))])
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
