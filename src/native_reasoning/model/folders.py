"""Whether the name of a model is that of a folder with one in it."""

from pathlib import Path

from native_reasoning.config.errors import PolicyError, did_you_mean

#: One of them is in a model's folder, and in a run's.
_OF_MODELS = ("config.json", "adapter_config.json")
_OF_RUNS = "config.yaml"


def is_path(name: str) -> bool:
    """Whether a model's name can only be a folder's, there or not: a hub id is no such thing."""
    there = Path(name).expanduser().is_dir()
    return there or name.startswith((".", "/", "~")) or name.count("/") > 1


def check_folder(name: str) -> None:
    """Raises PolicyError for the path of a folder that is not there, or holds no model; a hub id is
    neither."""
    path = Path(name).expanduser()
    beside = _folders(path.parent) if path.parent != Path(".") else {}
    if not path.is_dir() and (is_path(name) or "config" in beside.values()):
        raise PolicyError(
            f"model folder {name} does not exist{did_you_mean(path.name, beside)}",
            why="the model is read from it",
            fix="check the path, or give a hub id such as Qwen/Qwen3-0.6B-Base",
        )
    files = (*_OF_MODELS, "tokenizer.json")  # a tokenizer may be read from a folder of its own
    if path.is_dir() and not any((path / file).is_file() for file in files):
        inside = [name for name, kind in _folders(path).items() if kind]
        raise PolicyError(
            f"{name} holds no model" + (f", but {', '.join(inside[:8])}" if inside else ""),
            why=f"a model's folder has {' or '.join(_OF_MODELS)} in it",
            fix=f"name one of them: {path / inside[0]}" if inside else "check the path",
        )


def _folders(folder: Path) -> dict[str, str]:
    """The folders inside one, each "config" where it holds a model or a run, else ""."""
    if not folder.is_dir():
        return {}
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    known = (*_OF_MODELS, _OF_RUNS)
    return {p.name: "config" if any((p / k).is_file() for k in known) else "" for p in inside}
