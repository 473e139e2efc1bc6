"""Examples in token ids: encoded once, kept in the cache of ``datasets``, read when looked at.

The ids of examples that lie on the disk lie beside them, under a fingerprint of the examples and of
all that ids depend on. A few thousand examples are encoded in this process and kept in memory.
"""

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from native_reasoning.config.errors import DataError, TemplateError
from native_reasoning.data.chat_template import make_frame
from native_reasoning.data.loading import (
    SMALL,
    Lazy,
    StoredExamples,
    cached,
    fingerprint,
    rows_of,
    turns,
)
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import Template

#: Rows that a process gets at least; starting one takes as long as encoding some thousands.
_ROWS_PER_PROCESS = 5000
_BATCH = 256


@dataclass(frozen=True)
class Prepared:
    """Examples with their ``ids``, a table of ``prompt`` and ``answer`` (uint32 in the machine's
    order, null where the template refuses the row).

    ``prompt_sizes`` and ``answer_sizes`` (n,) are in tokens, -1 where the template refuses the row.
    """

    examples: Sequence[Example]
    ids: pa.Table
    prompt_sizes: np.ndarray
    answer_sizes: np.ndarray

    def groups(self, kept: np.ndarray) -> Sequence[PromptGroup]:
        """The groups of the examples ``kept`` (their numbers), numbered anew; few of them at once,
        many as they are looked at."""
        lazy = Groups(self, kept)
        return lazy if len(self.examples) > SMALL else tuple(lazy)


class Groups(Lazy[PromptGroup]):
    """Groups whose texts and ids are read when they are looked at."""

    def __init__(self, prepared: Prepared, kept: np.ndarray) -> None:
        super().__init__(np.arange(len(kept)))
        self.prepared, self.kept = prepared, kept

    def load(self, rows: np.ndarray) -> list[PromptGroup]:
        """The groups of these row ids."""
        ids = rows_of(self.prepared.ids, self.kept[rows])
        return [
            PromptGroup(e, tuple(array("I", i["prompt"])), tuple(array("I", i["answer"])))
            for e, i in zip(self._texts(rows), ids, strict=True)
        ]

    def examples(self) -> Iterator[Example]:
        """The examples alone."""
        for start in range(0, len(self.rows), _BATCH):
            yield from self._texts(self.rows[start : start + _BATCH])

    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each prompt and of each answer."""
        kept = self.kept[self.rows]
        return self.prepared.prompt_sizes[kept], self.prepared.answer_sizes[kept]

    def _texts(self, rows: np.ndarray) -> list[Example]:
        kept, examples = self.kept[rows], self.prepared.examples
        if isinstance(examples, Lazy):
            found = examples.load(examples.rows[kept])
        else:
            found = [examples[i] for i in kept.tolist()]
        return [replace(e, row_id=i) for e, i in zip(found, rows.tolist(), strict=True)]


def examples_of(groups: Sequence[PromptGroup]) -> Iterator[Example]:
    """The groups' examples, without reading any ids."""
    return groups.examples() if isinstance(groups, Groups) else (g.example for g in groups)


def sizes_of(groups: Sequence[PromptGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each group's prompt and of its answer."""
    if isinstance(groups, Groups):
        return groups.sizes()
    sizes = [(len(group.prompt_ids), len(group.answer_ids)) for group in groups]
    prompts, answers = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    return prompts, answers


# -- Making them ----------------------------------------------------------------------------------


def prepare(examples: Sequence[Example], template: Template) -> Prepared:
    """The ids of all examples. Raises DataError if the cache cannot be written."""
    if isinstance(examples, StoredExamples):
        ids = _from_cache(examples, template)
    else:
        ids = pa.table(_encode(examples, template), pa.schema(_COLUMNS))
    prompts, answers = (_sizes(ids.column(name)) for name in _COLUMNS)
    return Prepared(examples, ids, prompts, answers)


def _sizes(column: pa.ChunkedArray) -> np.ndarray:
    size: Any = pc.call_function("binary_length", [column])
    return pc.fill_null(size, -4).to_numpy() // 4


_COLUMNS = {"prompt": pa.large_binary(), "answer": pa.large_binary()}


def _encode(examples: Iterable[Example], template: Template) -> dict[str, list[bytes | None]]:
    """The columns of ``Prepared.ids``."""
    found: dict[str, list[bytes | None]] = {name: [] for name in _COLUMNS}
    for example in examples:
        try:
            ids = template.prompt_ids(example), template.answer_ids(example.answer)
            row = [array("I", part).tobytes() for part in ids]
        except TemplateError:
            row = [None, None]
        for name, part in zip(found, row, strict=True):
            found[name].append(part)
    return found


def _from_cache(examples: StoredExamples, template: Template) -> pa.Table:
    from datasets import Features, config

    rows = examples.dataset.select(examples.rows, new_fingerprint=fingerprint("rows"))
    key = fingerprint(examples.dataset._fingerprint, examples.rows.tolist(), _depends(template))
    processes = min(_cores(), len(rows) // _ROWS_PER_PROCESS)
    try:
        with cached(), FileLock(Path(config.HF_DATASETS_CACHE) / f"{key}.lock"):
            made = rows.map(
                _encode_batch,
                batched=True,
                batch_size=_BATCH,
                remove_columns=rows.column_names,
                features=Features.from_arrow_schema(pa.schema(_COLUMNS)),
                fn_kwargs={"template": template},
                num_proc=processes if processes > 1 else None,
                new_fingerprint=key,
            )
    except RuntimeError as error:
        if "abruptly died" not in str(error):
            raise
        raise DataError(
            "a process that encoded rows was killed",
            why="most often the machine has no memory left",
            fix="run fewer programs beside it, or fewer processes (taskset -c 0); then start again",
        ) from error
    return made.data.table


def _encode_batch(rows: dict[str, list[str]], template: Template) -> dict[str, list[bytes | None]]:
    texts = zip(rows["prompt"], rows["answer"], strict=True)
    return _encode((Example(turns(p), a, row_id=0, line=0) for p, a in texts), template)


def _cores() -> int:
    """Processes that may encode at a time."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _depends(template: Template) -> list[Any]:
    """All that the ids of a row depend on, the row apart."""
    tokenizer = template.tokenizer
    try:  # some chat templates write the date
        today = make_frame(tokenizer, ("user",)).text
    except TemplateError as error:
        today = error.what
    return [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        repr(tokenizer.special_tokens_map),
        tokenizer.split_special_tokens,
        asdict(template.boundary),
        template.end_ids,
        template.system_prompt,
        today,
    ]
