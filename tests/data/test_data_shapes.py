"""One row -> prompt and answer: every shape, every kind of value, every bad row."""

import datetime
import decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from native_reasoning.data.shapes import read_row
from native_reasoning.data.values import BadRow, text_of, value_at

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": " 4\n"},
]
SHAREGPT = [
    {"from": "system", "value": "Be short."},
    {"from": "human", "value": "2 + 2?"},
    {"from": "gpt", "value": "4"},
]
SYSTEM_AND_USER = (("system", "Be short."), ("user", "2 + 2?"))
USER = (("user", "2 + 2?"),)


def reason(row, *columns):
    """The reason for which a row is refused."""
    with pytest.raises(BadRow) as caught:
        read_row(row, *columns)
    return caught.value.reason


@pytest.mark.parametrize(
    ("row", "prompt", "shape"),
    [
        ({"prompt": "2 + 2?", "completion": " 4"}, USER, "prompt -> completion"),
        ({"prompt": TURNS[:2], "completion": TURNS[2:]}, SYSTEM_AND_USER, "prompt -> completion"),
        ({"prompt": "2 + 2?", "completion": TURNS[2:]}, USER, "prompt -> completion"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, SYSTEM_AND_USER, "prompt -> completion"),
        ({"prompt": TURNS[:2], "answer": 4}, SYSTEM_AND_USER, "prompt -> answer"),
        ({"question": "2 + 2?", "answer": "4"}, USER, "question -> answer"),
        ({"Question": "2 + 2?", "ANSWER": 4.0}, USER, "Question -> ANSWER"),
        ({"instruction": "2 + 2?", "output": "4"}, USER, "instruction -> output"),
        ({"instruction": "2 +", "input": "2?", "output": "4"}, (("user", "2 +\n2?"),), None),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, USER, None),
        ({"instruction": "2 + 2?", "input": None, "output": "4"}, USER, None),
        ({"messages": TURNS}, SYSTEM_AND_USER, "messages"),
        ({"conversations": SHAREGPT}, SYSTEM_AND_USER, "conversations"),
        ({"messages": SHAREGPT}, SYSTEM_AND_USER, "messages"),
        ({"conversations": TURNS}, SYSTEM_AND_USER, "conversations"),
        ({"messages": np.array(TURNS, dtype=object)}, SYSTEM_AND_USER, "messages"),
        ({"messages": [*TURNS, {"role": "user", "content": "Thanks"}]}, SYSTEM_AND_USER, None),
        ({"prompt": "x", "messages": TURNS}, SYSTEM_AND_USER, "messages"),
        ({"prompt": None, "completion": None, "messages": TURNS}, SYSTEM_AND_USER, "messages"),
        ({"prompt": "2 + 2?", "completion": None, "answer": "4"}, USER, "prompt -> answer"),
    ],
)
def test_every_shape_is_found(row, prompt, shape):
    pair = read_row(row)
    assert (pair.prompt, pair.answer) == (prompt, "4")
    assert shape is None or pair.shape == shape


@pytest.mark.parametrize(
    ("row", "prompt_column", "answer_column", "prompt"),
    [
        ({"Body": "2 +", "Question": "2?", "Answer": 4.0}, "Body+Question", None, "2 +\n2?"),
        ({"Body": "2 +", "Question": "2?", "Answer": 4.0}, "body + question", "answer", "2 +\n2?"),
        ({"a+b": "2 + 2?", "a": "x", "b": "y", "answer": "4"}, "a+b", None, "2 + 2?"),
        ({"a.b": "2 + 2?", "a": {"b": "x"}, "answer": "4"}, "a.b", None, "2 + 2?"),
        ({"a": {"B": "2 + 2?"}, "answer": "4"}, "a.b", None, "2 + 2?"),
        ({"question": "2 + 2?", "all": [{"out": "4"}]}, None, "all.0.out", "2 + 2?"),
        ({"contexts": ["2 +", "2"], "q": "= ?", "answer": "4"}, "contexts+q", None, "2 +\n2\n= ?"),
        ({"a": None, "q": "2 + 2?", "answer": "4"}, "a+q", None, "2 + 2?"),
        ({"instruction": "2 + 2?", "input": "no", "output": "4"}, "instruction", None, "2 + 2?"),
        ({"dialog": TURNS[1:]}, "dialog", None, "2 + 2?"),
        ({"more": {"dialog": TURNS[1:]}}, "more.dialog", None, "2 + 2?"),
        ({"messages": TURNS[1:2], "truth": "4"}, None, "truth", "2 + 2?"),
        ({"prompt": 7, "answer": "4"}, None, None, "7"),
    ],
)
def test_columns_can_be_named(row, prompt_column, answer_column, prompt):
    pair = read_row(row, prompt_column, answer_column)
    assert (pair.prompt, pair.answer) == ((("user", prompt),), "4")


def test_text_parts_of_a_turn_are_joined():
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2?"}]
    row = {"messages": [{"role": "user", "content": parts}, TURNS[2]]}
    assert read_row(row).prompt == USER


def test_a_tool_turn_may_be_answered():
    turns = [TURNS[1], {"role": "tool", "content": "4"}, TURNS[2]]
    assert read_row({"messages": turns}).prompt == (*USER, ("tool", "4"))


def test_the_prompt_keeps_its_white_space_and_the_answer_loses_it():
    pair = read_row({"prompt": "  def f():\n", "completion": "\n  pass \n"})
    assert (pair.prompt, pair.answer) == ((("user", "  def f():\n"),), "pass")


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("text", "wrong_type"),
        (["question", "answer"], "wrong_type"),
        (None, "wrong_type"),
        ({}, "missing_column"),
        ({"question": "q"}, "missing_column"),
        ({"question": "q", "answer": None}, "null"),
        ({"question": None, "answer": "a"}, "null"),
        ({"question": "q", "answer": float("nan")}, "null"),
        ({"messages": None}, "null"),
        ({"question": "q", "answer": {"words": "a"}}, "wrong_type"),
        ({"question": "q", "answer": [{"a": "b"}]}, "wrong_type"),
        ({"question": "q", "answer": []}, "null"),
        ({"question": {"text": "q"}, "answer": "a"}, "wrong_type"),
        ({"question": "q", "answer": " \n"}, "empty_answer"),
        ({"question": " ", "answer": "a"}, "empty_prompt"),
        ({"question": [], "answer": "a"}, "empty_prompt"),
        ({"question": "q\ud800", "answer": "a"}, "unencodable"),
        ({"question": "q", "answer": "a\udfff"}, "unencodable"),
        ({"messages": []}, "no_answer_turn"),
        ({"messages": turns(("user", "q"))}, "no_answer_turn"),
        ({"messages": turns(("assistant", "a"))}, "empty_prompt"),
        ({"messages": turns(("system", "s"), ("assistant", "a"))}, "empty_prompt"),
        ({"messages": turns(("user", ""), ("assistant", "a"))}, "empty_prompt"),
        ({"messages": turns(("user", "q"), ("assistant", ""))}, "empty_answer"),
        ({"messages": turns(("user", "q"), ("assistant", "a"), ("assistant", "b"))}, "bad_turns"),
        ({"messages": turns(("user", "q"), ("system", "s"), ("assistant", "b"))}, "bad_turns"),
        ({"messages": turns(("narrator", "q"), ("assistant", "a"))}, "bad_turns"),
        ({"messages": turns((None, "q"), ("assistant", "a"))}, "bad_turns"),
        ({"messages": turns(("user", None), ("assistant", "a"))}, "bad_turns"),
        ({"messages": turns(("user", [{"type": "image"}]), ("assistant", "a"))}, "bad_turns"),
        ({"messages": turns(("user", [{"type": "text"}]), ("assistant", "a"))}, "bad_turns"),
        ({"prompt": turns(("user", "q"), ("assistant", "a")), "answer": "b"}, "bad_turns"),
        ({"prompt": "q", "completion": turns(("user", "a"))}, "no_answer_turn"),
    ],
)
def test_every_bad_row_has_its_reason(row, expected):
    assert reason(row) == expected


def test_a_missing_column_is_named():
    for row, columns, missing in [
        ({"question": "q"}, (), "answer"),
        ({"instruction": "q"}, (), "output"),
        ({"text": "q"}, (), "question"),
        ({"answer": "a"}, (), "question"),
        ({"question": "q", "answer": "a"}, ("qestion",), "qestion"),
        ({"question": "q", "answer": "a"}, ("question+body",), "body"),
        ({"a": "q", "b": "r"}, ("a+b",), "answer"),
        ({"a": "q"}, ("a",), "answer"),
        ({"question": "q", "answer": "a"}, (None, "answer.0.text"), "answer.0.text"),
        ({"question": "q", "all": ["a"]}, (None, "all.x"), "all.x"),
    ]:
        with pytest.raises(BadRow, match="missing_column") as caught:
            read_row(row, *columns)
        assert caught.value.detail == missing


def test_a_path_that_runs_out_is_null_and_not_a_missing_column():
    assert value_at({"a": []}, "a.0.b") is None
    assert value_at({"a": None}, "a.b") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (51.0, "51"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (-2.0, "-2"),
        (0.1, "0.1"),
        (1e15, "1000000000000000"),
        (1e21, "1e21"),
        (1.5e-7, "1.5e-7"),
        (7, "7"),
        (10**30, "1" + "0" * 30),
        (True, "true"),
        (False, "false"),
        (np.bool_(True), "true"),
        (np.int64(3), "3"),
        (np.float64(3.0), "3"),
        (np.float32(0.1), "0.1"),
        (decimal.Decimal("1.50"), "1.50"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        ("007", "007"),
        (["one"], "one"),
        ([51.0], "51"),
        (np.array([51.0]), "51"),
    ],
)
def test_values_are_written_as_a_person_writes_them(value, text):
    assert text_of(value) == text


@pytest.mark.parametrize("value", [float("inf"), decimal.Decimal("NaN"), b"x", {}, [["x"]], 1j])
def test_values_without_a_plain_text_are_refused(value):
    with pytest.raises(BadRow, match="wrong_type"):
        text_of(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_not_changed_by_writing_it(value):
    text = text_of(value)
    assert float(text) == value
    assert not text.endswith(".0") and "+" not in text


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(prompt=TEXT, answer=TEXT)
def test_all_shapes_agree(prompt, answer):
    user, assistant = ("user", prompt), ("assistant", answer)
    rows = [
        {"prompt": prompt, "completion": answer},
        {"prompt": turns(user), "completion": turns(assistant)},
        {"prompt": prompt, "answer": answer},
        {"question": prompt, "answer": answer},
        {"instruction": prompt, "input": "", "output": answer},
        {"messages": turns(user, assistant)},
        {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]},
    ]
    pairs = {(pair.prompt, pair.answer) for pair in map(read_row, rows)}
    assert pairs == {(((user),), answer.strip())}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)
COLUMNS = st.sampled_from(["prompt", "question", "answer", "messages", "role", "content", "x"])


@given(
    row=JSON | st.dictionaries(COLUMNS, JSON | st.lists(st.dictionaries(COLUMNS, JSON))),
    prompt_column=st.none() | COLUMNS | st.just("x.0.prompt+question"),
    answer_column=st.none() | COLUMNS,
)
def test_no_row_crashes_the_reader(row, prompt_column, answer_column):
    try:
        pair = read_row(row, prompt_column, answer_column)
    except BadRow:
        return
    assert pair.answer == pair.answer.strip() != ""
    assert pair.prompt[-1][1].strip()
