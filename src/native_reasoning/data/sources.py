"""A source of any kind -> its raw rows, one at a time, each with the place where it stands.

A source that cannot be read at all is a DataError.
"""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from native_reasoning.config.errors import DataError
from native_reasoning.data.csv_files import header_command, read_csv
from native_reasoning.data.files import Row, numbered, read_json, suffix_of

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_SPLIT_NAME = re.compile(
    r"(?:^|[_.-])(train|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE
)
_SAME_SPLIT = {"valid": "validation", "val": "validation", "dev": "validation"}
#: What unpacks a file that is not read as it is, and files that look like data.
_UNPACK = {".zst": "zstd -d", ".zip": "unzip", ".7z": "7z x", ".rar": "unrar x", ".lz4": "lz4 -d"}
_DATA_LIKE = {
    *(*_UNPACK, ".tar", ".tgz", ".gz", ".bz2", ".xz", ".arrow", ".feather", ".xlsx", ".xls"),
    *(".ods", ".txt", ".xml", ".pkl", ".pickle", ".orc", ".avro", ".db", ".sqlite", ".jsonlines"),
}
_NAMES_SHOWN = 5
_SAVED = ("state.json", "dataset_dict.json")
_METADATA = {"dataset_info.json", "dataset_infos.json", *_SAVED}


@dataclass(frozen=True)
class RawRows:
    """The rows of one source, read as they are asked for, once.

    ``unit`` says what ``Row.number`` counts: "line" in JSON lines and CSV, else "row". ``said`` is
    what a person should know, such as the files of a folder that are not read.
    """

    source: str
    unit: str
    rows: Iterator[Row]
    said: tuple[str, ...] = ()

    def explained(self, error: DataError, row: Mapping[str, Any]) -> DataError:
        """The error for missing columns, or that for a CSV file without a header."""
        path = Path(self.source).expanduser()
        names = suffix_of(path) in (".csv", ".tsv") and path.is_file()
        if names and (command := header_command(path, [*row])):
            why = "the first row of a CSV file names its columns; this one may have no header"
            return DataError(error.what, why=why, fix=f"give it one: {command}")
        return error


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, a thousand in memory at a time. Raises DataError when broken."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _table_rows(file.iter_batches(batch_size=1000), file.schema_arrow, name)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}",
            why="the file is damaged or of another kind",
            fix="write it anew, or give it the suffix of its kind",
        ) from error


READERS: dict[str, Callable[..., Iterator[Row]]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": _read_parquet,
}
_BY_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")


def load_rows(source: object, *, split: str | None = None) -> RawRows:
    """Open a source.

    ``source`` is a file (.jsonl, .ndjson, .json, .csv, .tsv, .parquet; text also compressed, as
    .gz, .bz2 or .xz), a folder of such files or one written by ``save_to_disk``, a hub id
    (``owner/name`` or ``owner/name:config``), a ``datasets.Dataset`` or ``DatasetDict``, a pandas
    ``DataFrame``, or a list of dicts.

    ``split`` picks one split of a hub id, a DatasetDict, or a folder whose file names say their
    split (``train.jsonl``, ``test-00000-of-00001.parquet``), or one list of a JSON document.
    Without it a source with several splits gives "train".

    Raises DataError: at once when the source does not exist or has no such split; while reading,
    when a file cannot be read at all.
    """
    if isinstance(source, str | os.PathLike):
        path, name = Path(source).expanduser(), str(source)
        if path.is_dir():
            return _folder_rows(path, name, split)
        if not path.exists() and is_hub_id(name):
            return _hub_rows(name, split)
        _check_file(path, name)
        if suffix_of(path) != ".json":
            _refuse_split(split, name)
        unit = "line" if suffix_of(path) in _BY_LINES else "row"
        return RawRows(name, unit, _read(path, name, split))
    if isinstance(source, Sequence):
        _refuse_split(split, "a list of rows")
        return RawRows("the list of rows", "row", numbered(source))
    return _dataset_rows(source, "the dataset", split)


# -- Files and folders -----------------------------------------------------------------------------


def _read(path: Path, name: str, split: str | None = None) -> Iterator[Row]:
    try:
        yield from READERS[suffix_of(path)](path, name, *([split] if split else []))
    except OSError as error:
        raise DataError(
            f"{name} cannot be read: {error.strerror or error}",
            why="no row of it was seen",
            fix="check that the file is whole and that you may read it",
        ) from error


def _check_file(path: Path, name: str) -> None:
    """Raises DataError where there is no such file, and where no reader knows its suffix."""
    if path.exists():
        if suffix_of(path) not in READERS:
            unpack = _UNPACK.get(path.suffix.lower())
            raise DataError(
                f"{name} is of no known kind ({path.suffix or 'no suffix'})",
                why="the suffix says how a file is read",
                fix=f"unpack it: {unpack} {shlex.quote(name)}"
                if unpack
                else f"use one of {', '.join(READERS)}",
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
    seen = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.name not in _METADATA
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    files = [file for file in seen if suffix_of(file) in READERS]
    unread = [file for file in seen if file not in files and file.suffix.lower() in _DATA_LIKE]
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
        unread += [file for file in files if splits[file] is None]
        files = [file for file in files if splits[file] == wanted]
        name = f"{name} [{wanted}]"
    shown = ", ".join(str(file.relative_to(path)) for file in unread[:_NAMES_SHOWN])
    more = f" and {len(unread) - _NAMES_SHOWN} more" if len(unread) > _NAMES_SHOWN else ""
    said = (f"files of {name} that are not read: {shown}{more}",) if unread else ()
    return RawRows(name, "row", _chained(files, path), said)


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
    known = suffix_of(path) in READERS or path.parent.is_dir()
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
        _refuse_twice([*map(str, data.columns)], name)
        single = data.select_dtypes(["float16", "float32"])  # as they are: 0.1, not 0.1000000015
        values = data.astype(object).where(data.notna(), None)
        columns = {
            c: list(single[c].to_numpy()) if c in single else list(values[c]) for c in data.columns
        }
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        return RawRows(name, "row", numbered(rows))
    if isinstance(data, datasets.Dataset):
        tables = data.with_format("arrow").iter(1000)
        return RawRows(name, "row", _table_rows(tables, data.features.arrow_schema, name))
    raise DataError(
        f"{type(data).__name__} cannot be read as rows",
        why="rows are counted and numbered, so their number must be known",
        fix="give a path, a hub id, a datasets.Dataset, a pandas frame or a list of dicts; "
        "of a stream, list(stream.take(1000)); of a torch Dataset whose items are dicts, "
        "[data[i] for i in range(len(data))]",
    )


def _table_rows(tables: Iterable[Any], schema: Any, name: str) -> Iterator[Row]:
    """Rows of Arrow tables. Images, sounds and the like stay the bytes that they are; labels are
    their names. Raises DataError for a column that stands twice."""
    _refuse_twice(schema.names, name)
    labels = _labels(schema)
    columns = (
        zip(*(_column(table.column(n), labels.get(n)) for n in schema.names), strict=True)
        for table in tables
    )
    yield from numbered(
        dict(zip(schema.names, row, strict=True)) for rows in columns for row in rows
    )


def _labels(schema: Any) -> dict[str, list[str]]:
    """The names of classes, for columns that hold their numbers (``datasets.ClassLabel``)."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    features = datasets.Features.from_arrow_schema(schema)
    return {n: f.names for n, f in features.items() if isinstance(f, datasets.ClassLabel)}


def _column(column: Any, labels: list[str] | None) -> list[Any]:
    """The values of a column; where Python cannot hold one, such as a time in nanoseconds, as text,
    else nothing."""
    import pyarrow as pa

    try:
        if pa.types.is_float32(column.type):  # as it is written: 0.1, and not 0.10000000149011612
            column = column.cast(pa.string()).cast(pa.float64())
        values = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        try:
            values = column.cast(pa.string()).to_pylist()
        except pa.ArrowException:
            values = [None] * len(column)
    if labels is None:
        return values
    return [labels[v] if v is not None and 0 <= v < len(labels) else None for v in values]


def _refuse_twice(names: Sequence[str], source: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{source} has more than one column {', '.join(twice)}",
            why="which of them is meant cannot be known",
            fix="rename or remove one",
        )
