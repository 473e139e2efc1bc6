"""What a sampled text says: format, rightness, repetition, and what reward functions are given."""

from dataclasses import replace

import pytest
import torch

import tiny
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.objective.verdicts import RewardFunctions, columns_of, judge, read, repeats

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
    "right, and on to the next question": ("hm", ids("red\n\nsky?"), False, True),
    "wrong, and on to the next question": ("hm", ids("blue\nred\n"), False, False),
    "right, and more in the same turn": ("hm", (*ids("red\n\nsky?"), END), True, False),
    "empty answer": ("hm", (END,), False, False),
    "blank answer": ("hm", (*ids(" "), END), False, False),
    "empty trace": ("", (*ids("red"), END), True, True),
    "a tag as text in the trace": ("a <think> b", (*ids("red"), END), False, True),
    "a tag as text in the answer": ("hm", (*ids("red </think>"), END), False, False),
    "a tag as text at the end of the trace": ("hm </think>", (*ids("red"), END), False, True),
    "white space around the trace": (" \n hm \n ", (*ids("red"), END), True, True),
    "another end": ("hm", (*ids("red"), END, END), True, True),
    "longer than the reference": ("hm", (*ids("red red"), END), True, False),
    "open": ("hm", None, False, False),
    "nothing sampled at all": ("", None, False, False),
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


def test_white_space_around_the_reference_does_not_count():
    traces = Traces(((TAG,), (TAG,)), (True, True), answers=((*ids("red"), END), (*ids("r"), END)))
    assert read(group("\n red "), traces, TEMPLATE).correct.tolist() == [True, False]


def test_the_opening_token_inside_a_trace_is_a_tag_too():
    opening = TEMPLATE.tokenizer.convert_tokens_to_ids("<think>")
    answers = ((*ids("red"), END),) * 2
    traces = Traces(((opening, *ids("hm"), TAG), (*ids("hm"), TAG)), (True, True), answers=answers)
    assert read(group(), traces, TEMPLATE).complete.tolist() == [False, True]


def test_a_trace_that_an_end_of_turn_stopped_is_open():
    traces = Traces(((), (*ids("hm"), TAG)), (False, True), ended=(END, None))
    verdict = read(group(), traces, TEMPLATE)
    assert verdict.complete.tolist() == [False, True]
    assert verdict.repetitive.tolist() == [False, False]


def test_where_the_tag_is_text_it_is_not_looked_for_in_its_own_place():
    """The text that closes a trace is its tag once; in an answer it is a second one."""
    template = make_template(tiny.byte_tokenizer(), boundary="text")
    tag, end = template.boundary.close_ids, template.end_ids[0]
    right, again = (*ids(" red"), end), (*ids(" red"), *tag, *ids(" red"), end)
    traces = Traces(
        ids=((*ids("hm"), *tag), (*ids("hm"), *tag), (*ids("hm"), *tag, *tag)),
        closed=(True, True, True),
        answers=(right, again, right),
    )
    verdict = read(group(), traces, template)
    assert verdict.complete.tolist() == [True, False, False]
    assert verdict.correct.tolist() == [True, False, True]
    columns = columns_of([group()], [traces], template)
    assert columns["completions"][0] == "hm\nThe answer is red"


def test_ten_words_in_a_row_need_not_follow_each_other():
    ten = " ".join("abcdefghij")
    apart = " ".join(f"{ten} {i}" for i in range(10))
    assert repeats(apart)
    assert repeats(f"\n{apart.replace(' ', chr(10))}\t")
    assert not repeats(apart.replace(f"{ten} 4", "a b c"))  # nine are left
    assert not repeats(" ".join(f"{ten[:-2]} {i}" for i in range(20)))  # nine words in a row


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


def test_the_white_space_after_the_tag_is_part_of_what_was_sampled():
    tokenizer = tiny.byte_tokenizer(think=True)
    tokenizer.chat_template = tiny.QWEN3
    template = make_template(tokenizer)
    close, end = template.boundary.close_ids, template.end_ids[0]
    traces = Traces(
        ids=((*ids("hm"), *close), (*ids("hm"), *close)),
        closed=(True, True),
        answers=((*ids("red"), end), ()),
    )
    columns = columns_of([group()], [traces], template)
    assert template.gap_ids
    assert columns["completions"] == ["hm</think>\n\nred", "hm</think>"]
    assert columns["completion_ids"] == [
        [*ids("hm"), *close, *template.gap_ids, *ids("red"), end],
        [*ids("hm"), *close],
    ]


def test_one_conversation_makes_all_of_them_conversations():
    turns = (("system", "be brief"), ("user", "colour?"))
    chat = replace(group(), example=replace(group().example, prompt=turns))
    one = Traces(((*ids("hm"), TAG),), (True,))
    columns = columns_of([group(level=1), chat], [one, one], TEMPLATE)
    question = {"role": "user", "content": "colour?"}
    assert columns["prompts"] == [[question], [{"role": "system", "content": "be brief"}, question]]
    assert columns["completions"] == [[{"role": "assistant", "content": "hm</think>"}]] * 2
    assert columns["level"] == [1, None]


@pytest.mark.parametrize("name", ["count", "self", "function", "columns"])
def test_a_column_may_have_any_name(name):
    def reward(completions, **columns):
        return columns[name]

    one = Traces(((*ids("hm"), TAG), (TAG,)), (True, True))
    (verdict,) = judge([group(**{name: 7})], [one], TEMPLATE, RewardFunctions([reward]))
    assert verdict.added.tolist() == [7.0, 7.0]


def test_a_column_called_trainer_state_does_not_replace_the_state():
    def reward(completions, trainer_state, **columns):
        return [trainer_state]

    one, rewards = Traces(((TAG,),), (True,)), RewardFunctions([reward])
    (verdict,) = judge([group(trainer_state=7)], [one], TEMPLATE, rewards, trainer_state=5)
    assert verdict.added.tolist() == [5.0]


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
