"""A source of any kind -> its raw rows, one at a time, each with the place where it stands.

A source that cannot be read at all is a DataError.
"""

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from native_reasoning.config.errors import DataError
from native_reasoning.data.files import READERS, Row, numbered

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SPLIT_NAME = re.compile(
    r"(?:^|[_.-])(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE
)
_SAME_SPLIT = {"valid": "validation", "val": "validation", "dev": "validation"}
_SAVED = ("state.json", "dataset_dict.json")
_METADATA = {"dataset_info.json", "dataset_infos.json", *_SAVED}


@dataclass(frozen=True)
class RawRows:
    """The rows of one source, read as they are asked for, once.

    ``unit`` says what ``Row.number`` counts: "line" in JSON lines, else "row".
    """

    source: str
    unit: str
    rows: Iterator[Row]


def load_rows(source: object, *, split: str | None = None) -> RawRows:
    """Open a source.

    ``source`` is a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet), a folder of such files or
    one written by ``save_to_disk``, a hub id (``owner/name`` or ``owner/name:config``), a
    ``datasets.Dataset`` or ``DatasetDict``, a pandas ``DataFrame``, or a list of dicts.

    ``split`` picks one split of a hub id, a DatasetDict, or a folder whose file names say their
    split (``train.jsonl``, ``test-00000-of-00001.parquet``). Without it a source with several
    splits gives "train".

    Raises DataError: at once when the source does not exist or has no such split; while reading,
    when a file cannot be read at all.
    """
    if isinstance(source, str | os.PathLike):
        path, name = Path(source).expanduser(), str(source)
        if path.is_dir():
            return _folder_rows(path, name, split)
        if not path.exists() and is_hub_id(name):
            return _hub_rows(name, split)
        _refuse_split(split, name)
        _check_file(path, name)
        unit = "line" if path.suffix.lower() in (".jsonl", ".ndjson") else "row"
        return RawRows(name, unit, _read(path, name))
    if isinstance(source, Sequence):
        _refuse_split(split, "a list of rows")
        return RawRows("the list of rows", "row", numbered(source))
    return _dataset_rows(source, "the dataset", split)


# -- Files and folders -----------------------------------------------------------------------------


def _read(path: Path, name: str) -> Iterator[Row]:
    try:
        yield from READERS[path.suffix.lower()](path, name)
    except OSError as error:
        raise DataError(
            f"{name} cannot be read: {error.strerror or error}",
            why="no row of it was seen",
            fix="check that the file is whole and that you may read it",
        ) from error


def _check_file(path: Path, name: str) -> None:
    """Raises DataError where there is no such file, and where no reader knows its suffix."""
    if path.exists():
        if path.suffix.lower() not in READERS:
            raise DataError(
                f"{name} is of no known kind ({path.suffix or 'no suffix'})",
                why="the suffix says how a file is read",
                fix=f"use one of {', '.join(READERS)}",
            )
        return
    parent = path.parent
    fix = f"check the path: there is no folder {parent}"
    if parent.is_dir():
        near = difflib.get_close_matches(path.name, os.listdir(parent), n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(str(parent / other) for other in near)}?"
        if not near:
            fix = "check the path; a data set of the hub is named owner/name"
    raise DataError(f"{name} does not exist", why="there is nothing to read", fix=fix)


def _folder_rows(path: Path, name: str, split: str | None) -> RawRows:
    """All files of a folder in the order of their names, numbered through."""
    if any((path / saved).exists() for saved in _SAVED):
        import datasets

        return _dataset_rows(datasets.load_from_disk(str(path)), name, split)
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in READERS
        and file.name not in _METADATA
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise DataError(
            f"the folder {name} holds no data file",
            why="there is nothing to read",
            fix=f"put files of one of these kinds there: {', '.join(READERS)}",
        )
    splits = {file: _split_of(file.relative_to(path)) for file in files}
    names = {found for found in splits.values() if found is not None}
    if split is not None or len(names) > 1:
        wanted = _pick_split(split, sorted(names), name)
        files = [file for file in files if splits[file] == wanted]
        name = f"{name} [{wanted}]"
    return RawRows(name, "row", _chained(files, path))


def _chained(files: list[Path], root: Path) -> Iterator[Row]:
    rows = ((file, row) for file in files for row in _read(file, str(file)))
    for number, (file, row) in enumerate(rows, start=1):
        yield Row(number, f"{file.relative_to(root)} {row.place}", row.value, row.problem)


# -- Splits ----------------------------------------------------------------------------------------


def _split_of(relative: Path) -> str | None:
    """The split that a file's name says, else the nearest folder's; None when none says one."""
    for part in (relative.stem, *reversed(relative.parts[:-1])):
        if match := _SPLIT_NAME.search(part):
            return _same_split(match.group(1))
    return None


def _same_split(split: str) -> str:
    return _SAME_SPLIT.get(split.lower(), split.lower())


def _pick_split(split: str | None, names: Sequence[str], source: str) -> str:
    """The split asked for, or the only one, or "train". Raises DataError when there is none."""
    if split is None:
        if len(names) == 1 or "train" in names:
            return "train" if "train" in names else names[0]
        raise DataError(
            f"{source} has several splits and none is train: {', '.join(names)}",
            why="rows for training and for testing must not be mixed",
            fix=f"name the split: {names[0]}; of a DatasetDict, give data[{names[0]!r}]",
        )
    for name in names:
        if split == name or _same_split(split) == _same_split(name):
            return name
    raise DataError(
        f"split {split!r} not found in {source} (it has: {', '.join(names) or 'no named splits'})",
        why="only the split asked for is read",
        fix=f"name one of {', '.join(names)}" if names else "leave the split out",
    )


def _refuse_split(split: str | None, source: str) -> None:
    if split is not None:
        _pick_split(split, (), source)


# -- The hub and objects of libraries --------------------------------------------------------------


def is_hub_id(source: str) -> bool:
    """Whether a name that is no path here reads as owner/name of the hub."""
    path = Path(source)
    known = path.suffix.lower() in READERS or path.parent.is_dir()
    return _HUB_ID.fullmatch(source) is not None and not known


def _hub_rows(source: str, split: str | None) -> RawRows:
    """A data set of the hub through ``datasets`` (which keeps it in its cache)."""
    import datasets

    name, _, config = source.partition(":")
    try:
        if split is None:
            splits = datasets.get_dataset_split_names(name, config or None)
            split = _pick_split(None, splits, source)
        data = datasets.load_dataset(name, config or None, split=split)
    except DataError:
        raise
    except Exception as error:  # the hub client raises many kinds; each means "could not load"
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{source} could not be loaded from the hub: {text[0]}",
            why=f"{source} is no file here, so it was taken for a data set's name on the hub",
            fix="check the name (owner/name or owner/name:config), the split and the network",
        ) from error
    return _dataset_rows(data, f"{source} [{split}]", None)


def _dataset_rows(data: object, name: str, split: str | None) -> RawRows:
    """Rows of a ``datasets.Dataset``, of one split of a ``DatasetDict``, or of a frame."""
    import datasets
    import pandas as pd

    if isinstance(data, datasets.DatasetDict):
        picked = _pick_split(split, [str(key) for key in data], name)
        return _dataset_rows(data[picked], f"{name} [{picked}]", None)
    _refuse_split(split, name)
    if isinstance(data, pd.DataFrame):
        values = data.astype(object).where(data.notna(), None).to_dict("records")
        return RawRows(name, "row", numbered(values))
    if isinstance(data, datasets.Dataset):
        return RawRows(name, "row", numbered(data.with_format(None)))
    raise DataError(
        f"{type(data).__name__} cannot be read as rows",
        why="rows are counted and numbered, so their number must be known",
        fix="give a path, a hub id, a datasets.Dataset, a pandas frame or a list of dicts; "
        "of a stream, list(stream.take(1000)); of a torch Dataset whose items are dicts, "
        "[data[i] for i in range(len(data))]",
    )
