"""Examples in token ids: encoded once, kept in the cache of ``datasets``, read when looked at.

The ids of examples that lie on the disk lie beside them, under a fingerprint of the examples and of
all that ids depend on. A few thousand examples are encoded at once and stay in memory.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from native_reasoning.config.errors import TemplateError
from native_reasoning.data.chat_template import make_frame
from native_reasoning.data.loading import Stored, cached, example_of, fingerprint
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.data.template import Template

#: Rows that the tokenizer gets at a time.
_BATCH = 256


@dataclass(frozen=True)
class Prepared:
    """Examples with their ids: groups (None where the template refuses the row), or for examples
    on the disk a ``datasets.Dataset`` of them.

    ``prompt_sizes`` and ``answer_sizes`` (n,) are in tokens, -1 where the template refuses the row.
    """

    rows: Any
    prompt_sizes: np.ndarray
    answer_sizes: np.ndarray

    def groups(self, kept: np.ndarray) -> Sequence[PromptGroup]:
        """The groups of the examples ``kept`` (their numbers), numbered anew."""
        if isinstance(self.rows, list):
            found: list[PromptGroup] = [self.rows[i] for i in kept.tolist()]
            return tuple(
                replace(group, example=replace(group.example, row_id=i))
                for i, group in enumerate(found)
            )
        from datasets import Dataset, concatenate_datasets

        row_ids = np.full(len(self.rows), -1)
        row_ids[kept] = np.arange(len(kept))
        columns = [self.rows.remove_columns("row_id"), Dataset.from_dict({"row_id": row_ids})]
        return Stored(concatenate_datasets(columns, axis=1).select(kept), _group_of)


def prepare(examples: Sequence[Example], template: Template) -> Prepared:
    """The ids of all examples. Raises DataError if the cache cannot be written."""
    if isinstance(examples, Stored):
        ids = _from_cache(examples.dataset, template)
        sizes = [np.array(ids[name]) for name in ("prompt_size", "answer_size")]
        from datasets import concatenate_datasets

        return Prepared(concatenate_datasets([examples.dataset, ids], axis=1), *sizes)
    batches = (examples[i : i + _BATCH] for i in range(0, len(examples), _BATCH))
    groups = [group for batch in batches for group in _encode(batch, template)]
    sizes = np.array([_sizes(group) for group in groups]).reshape(-1, 2)
    return Prepared(groups, *sizes.T)


def examples_of(groups: Sequence[PromptGroup]) -> Iterator[Example]:
    """The groups' examples, without making ids."""
    if isinstance(groups, Stored):
        return iter(Stored(groups.dataset, example_of))
    return (group.example for group in groups)


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
    return (-1, -1) if group is None else (len(group.prompt_ids), len(group.answer_ids))


def _from_cache(rows: Any, template: Template) -> Any:
    """A ``datasets.Dataset`` of ids (uint32 in the machine's order) beside ``rows``."""
    from datasets import Features, Value, config

    ids, size = Value("large_binary"), Value("int32")
    features = Features(prompt_ids=ids, answer_ids=ids, prompt_size=size, answer_size=size)

    def encoded(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        of_rows = zip(*batch.values(), strict=True)
        examples = [example_of(dict(zip(batch, row, strict=True))) for row in of_rows]
        groups = _encode(examples, template)
        sizes = [_sizes(group) for group in groups]
        return {
            "prompt_ids": [group and array("I", group.prompt_ids).tobytes() for group in groups],
            "answer_ids": [group and array("I", group.answer_ids).tobytes() for group in groups],
            "prompt_size": [prompt for prompt, _ in sizes],
            "answer_size": [answer for _, answer in sizes],
        }

    key = fingerprint(rows._fingerprint, _depends(template))
    with cached(), FileLock(Path(config.HF_DATASETS_CACHE) / f"{key}.lock"):
        return rows.map(
            encoded,
            batched=True,
            batch_size=_BATCH,
            remove_columns=rows.column_names,
            features=features,
            new_fingerprint=key,
        )


def _group_of(row: Mapping[str, Any]) -> PromptGroup:
    """The group that a row of the cache holds."""
    prompt, answer = (tuple(array("I", row[name])) for name in ("prompt_ids", "answer_ids"))
    return PromptGroup(example_of(row), prompt, answer)


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
