"""Whether the name of a model is that of a folder with one in it."""

from pathlib import Path

from native_reasoning.config.errors import PolicyError, did_you_mean

#: One of them is in a model's folder; a tokenizer may be read from a folder of its own.
_FILES = ("config.json", "adapter_config.json", "tokenizer.json")


def is_path(name: str) -> bool:
    """Whether a model's name can only be a folder's, there or not: a hub id is no such thing."""
    there = Path(name).expanduser().is_dir()
    return there or name.startswith((".", "/", "~")) or name.count("/") > 1


def check_folder(name: str) -> None:
    """Raises PolicyError for the path of a folder that is not there, or holds no model; a hub id is
    neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in _FILES):
            raise PolicyError(
                f"{name} holds no model",
                why=f"a model's folder has one of {', '.join(_FILES)} in it",
                fix="check the path: that of a run's model ends in final or checkpoint-N",
            )
        return
    here = path.parent == Path(".")
    beside = [] if here else [file.parent.name for file in path.parent.glob("*/config.*")]
    if is_path(name) or beside:
        raise PolicyError(
            f"model folder {name} does not exist{did_you_mean(path.name, beside)}",
            why="the model is read from it",
            fix="check the path, or give a hub id such as Qwen/Qwen3-0.6B-Base",
        )
