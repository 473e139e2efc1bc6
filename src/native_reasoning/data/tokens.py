"""Examples in token ids: encoded once, kept in the cache of ``datasets``, read when looked at.

The ids of more than a few thousand examples lie on the disk, under a fingerprint of their texts and
of all that ids depend on: the next run finds them there.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, overload

import numpy as np

from native_reasoning.config.errors import DataError, TemplateError
from native_reasoning.data.chat_template import make_frame
from native_reasoning.data.loading import content_hash
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import Template

#: The ids of up to this many examples stay in memory.
SMALL = 5000
#: Rows that are encoded, or read, at a time.
_BATCH = 64


@dataclass(frozen=True, eq=False)
class Groups(Sequence[PromptGroup]):
    """Groups of ``examples`` whose ``ids``, a ``datasets.Dataset``, are read when they are looked
    at. A slice is another such sequence."""

    examples: tuple[Example, ...]
    ids: Any

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> PromptGroup: ...
    @overload
    def __getitem__(self, index: slice) -> "Groups": ...
    def __getitem__(self, index: int | slice) -> "PromptGroup | Groups":
        if isinstance(index, slice):
            rows = np.arange(len(self))[index]
            return Groups(self.examples[index], self.ids.select(rows))
        return _group(self.examples[index], self.ids[int(index)])

    def __iter__(self) -> Iterator[PromptGroup]:
        tables = self.ids.with_format("arrow").iter(_BATCH)
        return map(_group, self.examples, (row for table in tables for row in table.to_pylist()))


def _group(example: Example, ids: Mapping[str, Any]) -> PromptGroup:
    prompt, answer, *others = (tuple(array("I", part)) for part in (ids["prompt"], *ids["answers"]))
    return PromptGroup(example, prompt, answer, others=tuple(others))


@dataclass(frozen=True)
class Prepared:
    """Examples with their ids: ``rows`` are groups (None where the template refuses the row), or
    of many examples a ``datasets.Dataset`` of ids.

    ``prompt_sizes`` and ``answer_sizes`` (n,) are in tokens, -1 where the template refuses the row.
    """

    examples: Sequence[Example]
    rows: Any
    prompt_sizes: np.ndarray
    answer_sizes: np.ndarray

    def groups(self, kept: np.ndarray) -> Sequence[PromptGroup]:
        """The groups of the examples ``kept`` (their numbers), numbered anew."""
        rows = enumerate(self.examples[i] for i in kept.tolist())
        examples = tuple(e if e.row_id == n else replace(e, row_id=n) for n, e in rows)
        if not isinstance(self.rows, list):
            return Groups(examples, self.rows.select(kept))
        groups: list[PromptGroup] = [self.rows[i] for i in kept.tolist()]
        return tuple(replace(g, example=e) for g, e in zip(groups, examples, strict=True))


def prepare(examples: Sequence[Example], template: Template) -> Prepared:
    """The ids of all examples. Raises DataError if the cache cannot be written."""
    found = _groups(examples, template)
    if len(examples) > SMALL:
        ids = _from_cache(_key(examples, template), found)
        sizes = [np.array(ids[name]) for name in ("prompt_size", "answer_size")]
        return Prepared(examples, ids, *sizes)
    groups = list(found)
    sizes = np.array([_sizes(group) for group in groups]).reshape(-1, 2)
    return Prepared(examples, groups, *sizes.T)


def examples_of(groups: Sequence[PromptGroup]) -> Iterable[Example]:
    """The groups' examples, without reading ids."""
    return groups.examples if isinstance(groups, Groups) else (g.example for g in groups)


# -- Making them -----------------------------------------------------------------------------------


def _groups(examples: Sequence[Example], template: Template) -> Iterator[PromptGroup | None]:
    for start in range(0, len(examples), _BATCH):
        yield from _encode(examples[start : start + _BATCH], template)


def _encode(examples: Sequence[Example], template: Template) -> list[PromptGroup | None]:
    """Their groups, None where the template refuses one."""
    try:
        return [*template.groups(examples)]
    except TemplateError:
        if len(examples) == 1:
            return [None]
        half = len(examples) // 2
        return _encode(examples[:half], template) + _encode(examples[half:], template)


def _sizes(group: PromptGroup | None) -> tuple[int, int]:
    """Tokens of the prompt and of the longest reference; -1 where the template refuses the row."""
    return (len(group.prompt_ids), group.answer_size) if group else (-1, -1)


def _from_cache(key: str, groups: Iterable[PromptGroup | None]) -> Any:
    """A ``datasets.Dataset`` of ids (uint32 in the machine's order) and of their number."""
    import datasets
    from datasets import Dataset, Features, Value, config
    from datasets.exceptions import DatasetGenerationError

    def rows() -> Iterator[dict[str, Any]]:
        for group in groups:
            sizes = _sizes(group)
            prompt = group.prompt_ids if group else ()
            answers = (group.answer_ids, *group.others) if group else ()
            yield {
                "prompt": array("I", prompt).tobytes(),
                "answers": [array("I", answer).tobytes() for answer in answers],
                "prompt_size": sizes[0],
                "answer_size": sizes[1],
            }

    ids, size = Value("large_binary"), Value("int32")
    features = Features(prompt=ids, answers=[ids], prompt_size=size, answer_size=size)
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return Dataset.from_generator(rows, features=features, fingerprint=key)
    except (OSError, DatasetGenerationError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__ or error
        if not isinstance(cause, OSError):
            raise cause from None
        raise DataError(
            f"token ids cannot be kept in {config.HF_DATASETS_CACHE}: {cause.strerror or cause}",
            why="those of more than a few thousand rows lie on the disk",
            fix="make room there, or set HF_DATASETS_CACHE to a folder with more",
        ) from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _key(examples: Iterable[Example], template: Template) -> str:
    """A name for all that the ids of the examples depend on."""
    from native_reasoning import __version__

    tokenizer = template.tokenizer
    try:  # some chat templates write the date
        today = make_frame(tokenizer, ("user",)).text
    except TemplateError as error:
        today = error.what
    parts = [
        __version__,
        content_hash(examples),
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        repr(tokenizer.special_tokens_map),
        tokenizer.split_special_tokens,
        asdict(template.boundary),
        template.end_ids,
        template.system_prompt,
        today,
    ]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
