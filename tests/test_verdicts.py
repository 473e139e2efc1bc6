"""What a sampled text says: format, rightness, repetition, and what reward functions are given."""

from dataclasses import replace

import pytest
import torch

import tiny
from native_reasoning.custom import RewardFunctions
from native_reasoning.template import make_template
from native_reasoning.types import Example, PromptGroup, Traces
from native_reasoning.verdicts import columns_of, judge, read, repeats

TEMPLATE = make_template(tiny.byte_tokenizer())
TAG, END = TEMPLATE.boundary.close_ids[0], TEMPLATE.end_ids[0]


def ids(text):
    return tuple(TEMPLATE.plain.encode(text, add_special_tokens=False).ids)


def group(answer="red", weight=1.0, **columns):
    example = Example((("user", "colour?"),), answer, row_id=0, line=1, columns=columns)
    return PromptGroup(example, ids("colour?"), (*ids(answer), END), weight)


#: trace, answer as sampled (None: open, no answer), complete, correct
CASES = {
    "right": ("hm", (*ids("red"), END), True, True),
    "white space around": ("hm", (*ids(" red\n"), END), True, True),
    "wrong": ("hm", (*ids("blue"), END), True, False),
    "right but cut at the limit": ("hm", ids("red"), False, False),
    "empty answer": ("hm", (END,), False, False),
    "blank answer": ("hm", (*ids(" "), END), False, False),
    "empty trace": ("", (*ids("red"), END), True, True),
    "a tag as text in the trace": ("a <think> b", (*ids("red"), END), False, True),
    "a tag as text in the answer": ("hm", (*ids("red </think>"), END), False, False),
    "open": ("hm", None, False, False),
}


@pytest.mark.parametrize("name", CASES)
def test_format_and_rightness(name):
    trace, answer, complete, correct = CASES[name]
    closed = answer is not None
    traces = Traces(
        ids=((*ids(trace), TAG) if closed else ids(trace), (TAG,)),
        closed=(closed, True),
        answers=(answer or (), (*ids("red"), END)),
    )
    verdict = read(group(), traces, TEMPLATE)
    assert verdict.complete.tolist() == [complete, True]
    assert verdict.correct.tolist() == [correct, True]
    assert verdict.added is None


def test_without_sampled_answers_a_closed_trace_is_complete():
    traces = Traces(((*ids("hm"), TAG), ids("hm")), (True, False))
    verdict = read(group(), traces, TEMPLATE)
    assert verdict.complete.tolist() == [True, False]
    assert verdict.correct.tolist() == [False, False]


def test_repetition_is_ten_words_ten_times():
    ten = " ".join("abcdefghij")
    assert repeats(" ".join([ten] * 10))
    assert not repeats(" ".join([ten] * 9))
    assert repeats("no " * 19)  # ten runs of ten words
    assert not repeats("no " * 18)
    assert not repeats("")
    traces = Traces(((*ids("no " * 10), TAG), (TAG,)), (True, True), answers=(ids("no " * 9), ()))
    # over trace and answer together
    assert read(group(), traces, TEMPLATE).repetitive.tolist() == [True, False]


def test_reward_functions_are_called_once_for_every_real_group():
    calls = []

    def reward(prompts, completions, answer, **columns):
        calls.append((prompts, completions, answer, columns))
        return range(len(prompts))

    traces = Traces(((*ids("hm"), TAG), ids("so")), (True, False), answers=((*ids("red"), END), ()))
    filler = group(weight=0.0)
    one = Traces(((TAG,),), (True,))
    groups = [group(level=3), filler, group("blue")]
    verdicts = judge(
        groups, [traces, one, traces], TEMPLATE, RewardFunctions([reward]), trainer_state="s"
    )
    assert [v.added.tolist() for v in verdicts] == [[0.0, 1.0], [0.0], [2.0, 3.0]]
    ((prompts, completions, answer, columns),) = calls
    assert prompts == ["colour?"] * 4
    assert completions == ["hm</think>red", "so"] * 2
    assert answer == ["red", "red", "blue", "blue"]
    assert columns["level"] == [3, 3, None, None]
    assert columns["completion_ids"][0] == [*ids("hm"), TAG, *ids("red"), END]
    assert columns["trainer_state"] == "s"
    assert judge(groups, [traces, one, traces], TEMPLATE, RewardFunctions([]))[0].added is None


def test_a_rank_of_fillers_alone_asks_nobody():
    def never(**columns):
        raise AssertionError("asked about nothing")

    one = Traces(((TAG,),), (True,))
    (verdict,) = judge([group(weight=0.0)], [one], TEMPLATE, RewardFunctions([never]))
    assert verdict.added.tolist() == [0.0]


def test_columns_called_like_ours_do_not_replace_ours():
    taken = {"prompts": "x", "completions": "y", "completion_ids": "z", "answer": "all of it"}
    made = replace(group(), example=replace(group().example, columns=taken))
    columns = columns_of([made], [Traces(((TAG,),), (True,))], TEMPLATE)
    assert columns["prompts"] == ["colour?"]
    assert columns["completions"] == ["</think>"]
    assert columns["answer"] == ["red"]


def test_verdicts_move_between_devices():
    verdict = read(group(), Traces(((TAG,),), (True,)), TEMPLATE)
    assert verdict.to(torch.device("cpu")).complete.tolist() == [True]
