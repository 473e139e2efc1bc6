"""What the sampled text says: its format, whether its answer is right, and the user's rewards."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from native_reasoning.data.rows import PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.objective.custom import RewardFunctions
from native_reasoning.objective.types import Verdict

#: RLPR's rule for repetition: this many words in a row, this often (2506.18254, released code).
REPEATED_WORDS, REPEATED_TIMES = 10, 10


def judge(
    groups: Sequence[PromptGroup],
    traces: Sequence[Traces],
    template: Template,
    rewards: RewardFunctions,
    **context: Any,
) -> list[Verdict]:
    """A verdict per group. ``context`` (such as ``trainer_state``) is handed to ``rewards``.

    The reward functions are called once, with every trace of every group that has weight.
    """
    verdicts = [read(*pair, template) for pair in zip(groups, traces, strict=True)]
    real = [i for i, group in enumerate(groups) if group.weight]
    if not rewards:
        return verdicts
    if not real:
        return [replace(v, added=torch.zeros(len(v.correct))) for v in verdicts]
    columns = columns_of([groups[i] for i in real], [traces[i] for i in real], template)
    sizes = [len(t.ids) if g.weight else 0 for g, t in zip(groups, traces, strict=True)]
    added = rewards(sum(sizes), **{**columns, **context}).split(sizes)
    return [
        replace(v, added=one if len(one) else torch.zeros(len(v.correct)))
        for v, one in zip(verdicts, added, strict=True)
    ]


def read(group: PromptGroup, traces: Traces, template: Template) -> Verdict:
    """The verdict on one group, without the user's rewards."""
    complete, correct, repetitive = [], [], []
    answered = bool(traces.answers)
    for ids, closed, answer in zip(traces.ids, traces.closed, traces.answered(), strict=True):
        before = ids[: len(ids) - template.tag_length(ids)] if closed else ids
        trace, text = template.completion(before), template.completion(answer).strip()
        ended = bool(answer) and answer[-1] in template.end_ids
        tagged = any(tag in part for tag in template.tags for part in (trace, text))
        complete.append(closed and (not answered or (ended and bool(text) and not tagged)))
        correct.append(ended and text == group.example.answer.strip())
        repetitive.append(repeats(f"{trace} {text}"))
    return Verdict(torch.tensor(complete), torch.tensor(correct), torch.tensor(repetitive))


def repeats(text: str) -> bool:
    """Whether ``REPEATED_WORDS`` words in a row occur ``REPEATED_TIMES`` times.

    >>> repeats("no " * 19), repeats("no " * 18)
    (True, False)
    """
    words = text.split()
    if len(words) < REPEATED_WORDS + REPEATED_TIMES - 1:
        return False
    runs = zip(*(words[i:] for i in range(REPEATED_WORDS)), strict=False)
    return max(Counter(runs).values()) >= REPEATED_TIMES


def columns_of(
    groups: Sequence[PromptGroup], traces: Sequence[Traces], template: Template
) -> dict[str, list[Any]]:
    """What reward functions are given, one entry per trace, named as TRL names it.

    ``prompts`` and ``completions`` are strings where every prompt is one user turn, else lists of
    messages. A completion is what was sampled: trace, closing tag, and the answer if there is one.
    ``completion_ids`` has its tokens; ``answer`` is the reference; then the data's other columns.
    """
    chat = any(len(group.example.prompt) > 1 for group in groups)
    rows: list[dict[str, Any]] = []
    for group, sampled in zip(groups, traces, strict=True):
        example = group.example
        for ids, answer in zip(sampled.ids, sampled.answered(), strict=True):
            completion = (*ids, *(template.gap_ids if answer else ()), *answer)
            text = template.completion(completion)
            own = {
                "prompts": _messages(example.prompt) if chat else example.question,
                "completions": _messages((("assistant", text),)) if chat else text,
                "completion_ids": list(completion),
                "answer": example.answer,
            }
            rows.append({**own, **example.columns, **own})
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _messages(turns: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]
