"""A small model folder, small data files, and ways to run the command in and out of process."""

import pytest

from cli_helpers import sums, write_rows
from native_reasoning.cli import main


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    """A folder with a random two-layer model."""
    from tiny import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path) -> str:
    """Nine questions for training."""
    return write_rows(tmp_path / "qa.jsonl", sums(0, 3))


@pytest.fixture
def held_out(tmp_path) -> str:
    """Three other questions."""
    return write_rows(tmp_path / "test.jsonl", sums(5, 6))


@pytest.fixture
def nrt(capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refuses(nrt):
    """Asserts the three lines of an error on stderr and exit code 2, and returns them."""

    def run(*arguments: str) -> list[str]:
        code, out, err = nrt(*arguments)
        assert code == 2, err
        assert out == ""
        last = err.splitlines()[-3:]
        assert last[0].startswith("error: "), err
        assert last[1].startswith("  why: "), err
        assert last[2].startswith("  fix: "), err
        assert "Traceback" not in err
        return last

    return run
