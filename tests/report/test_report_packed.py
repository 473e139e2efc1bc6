"""Traces as a page carries them: all of them come back, or it is told how many do not."""

import base64
import gzip
import json
import math
from itertools import pairwise

import pytest

from native_reasoning import load_run
from native_reasoning.report.page import compressed, packed
from report_runs import HOSTILE, held_out_row, made_run, trace_row

PLENTY = 10_000_000


@pytest.fixture
def of(tmp_path):
    return lambda name="run", **knobs: load_run(made_run(tmp_path / name, **knobs))


def opened(text):
    return json.loads(gzip.decompress(base64.b64decode(text, validate=True)))


def sets(*runs, limit=PLENTY):
    """The sets of the first run by label."""
    return {one["label"]: one for one in opened(packed(runs, limit)[0])["runs"][0]["sets"]}


def rows(one):
    """(step, row, k, prompt, answer, tokens, trace, l, b) of each trace of a set."""
    found, first = [], 0
    for (step, question, row, count), b in zip(one["groups"], one["b"], strict=True):
        for i in range(first, first + count):
            texts = (*one["questions"][question][:2], tuple(one["questions"][question][2]))
            found.append((step, row, one["k"][i], *texts, one["traces"][i], one["l"][i], b))
        first += count
    assert first == len(one["traces"])
    return found


def many(groups, *, step=lambda i: i + 1, size=2, text="word"):
    """Traces that do not compress to nothing."""
    return [
        trace_row(step(i), i, k, trace=f"{text} {math.sin(i * size + k)!r}")
        for i in range(groups)
        for k in range(size)
    ]


# -- What comes back -------------------------------------------------------------------------------


def test_every_trace_comes_back_in_order(of):
    made = [
        trace_row(
            step,
            row,
            k,
            trace=f"trace {step} {row} {k}",
            answer_logps=[-0.1234567 * (k + 1), -step / 7],
            baseline_logps=[-1.7654321, -row / 3],
        )
        for step, row, k in [(2, 1, 1), (1, 7, 0), (2, 1, 0), (1, 7, 1), (2, 0, 0), (2, 0, 1)]
    ]
    text, kept, there = packed([of(traces=made)], PLENTY)
    assert (kept, there) == (6, 6)
    (one,) = opened(text)["runs"][0]["sets"]
    found = rows(one)
    made.sort(key=lambda row: (row.step, row.row_id, row.k))
    assert [row[:3] for row in found] == [(row.step, row.row_id, row.k) for row in made]
    for got, row in zip(found, made, strict=True):
        assert got[3:7] == (row.prompt, row.answer, tuple(row.answer_tokens), row.trace)
        for thousandths, nats in ((got[7], row.answer_logps), (got[8], row.baseline_logps)):
            assert all(isinstance(x, int) for x in thousandths)
            assert [x / 1000 for x in thousandths] == pytest.approx(nats, abs=0.000501)


def test_what_else_is_known_of_a_trace(of):
    made = [
        trace_row(
            1, 0, 0, closed=True, ended=True, reward=0.123456, sampled_answer="five", length=17
        ),
        trace_row(1, 0, 1, closed=False, ended=True, advantage=-1.5),
        trace_row(1, 0, 2, closed=False, ended=False, baseline_reward=0.75),
    ]
    one = sets(of(traces=made))["training"]
    assert one["ends"] == [1, 2, 0]
    assert one["reward"] == [0.1235, 0.5, 0.5]
    assert one["base"] == [0.25, 0.25, 0.75]
    assert one["advantage"] == [0.125, -1.5, 0.125]
    assert one["said"] == ["five", "", ""]
    assert one["length"] == [17, 5, 5]
    assert one["right"] == one["right_no_think"] == one["said_no_think"] == []


def test_held_out_questions_are_a_set_of_their_own(of):
    held_out = [
        held_out_row(0, 3, correct=0.5, closed=False, answer_no_think="7"),
        held_out_row(20, 3, correct_no_think=1.0),
    ]
    run = of(held_out=held_out)
    found = sets(run)
    assert list(found) == ["training", "held-out"]
    one = found["held-out"]
    assert one["groups"] == [[0, 0, 3, 1], [20, 0, 3, 1]]
    assert one["questions"] == [["And 3 + 3?", "4", ["4", "<end>"]]]
    assert one["right"] == [0.5, 1.0]
    assert one["right_no_think"] == [0.0, 1.0]
    assert one["said_no_think"] == ["7", "5"]
    assert one["ends"] == [3, 1]
    assert one["reward"] == one["base"] == one["advantage"] == []
    assert packed([run], PLENTY)[1:] == (82, 82)


def test_a_question_is_carried_once_however_often_it_is_met(of):
    one = sets(of(steps=20))["training"]
    assert [question[0] for question in one["questions"]] == ["What is 0 + 0?", "What is 1 + 1?"]
    assert len(one["groups"]) == 40


def test_rows_with_the_same_number_and_other_text_stay_apart(of):
    one = sets(of(traces=[trace_row(1, 0), trace_row(2, 0, prompt="Another?")]))["training"]
    assert [row[3] for row in rows(one)] == ["What is 0 + 0?", "Another?"]


def test_a_row_that_comes_twice_in_a_step_loses_no_trace(of):
    made = [trace_row(1, 0, k, trace=f"{time} {k}") for time in ("once", "again") for k in (0, 1)]
    one = sets(of(traces=made))["training"]
    assert one["groups"] == [[1, 0, 0, 4]]
    assert one["traces"] == ["once 0", "again 0", "once 1", "again 1"]


def test_what_is_no_number_is_null(of):
    nan, inf = float("nan"), float("inf")
    row = trace_row(answer_logps=[nan, -inf], baseline_logps=[inf, -1.0], reward=nan, advantage=inf)
    one = sets(of(traces=[row]))["training"]
    assert (one["l"], one["b"]) == ([[None, None]], [[None, -1000]])
    assert (one["reward"], one["advantage"], one["base"]) == ([None], [None], [0.25])


def test_any_text_comes_back_as_it_was_recorded(of):
    run = of(hostile=True)
    for label, table in (("training", run.traces), ("held-out", run.held_out)):
        one = sets(run)[label]
        assert one["traces"] == table["trace"].to_pylist()
        assert [row[3] for row in rows(one)] == table["prompt"].to_pylist()
        assert [list(row[5]) for row in rows(one)] == table["answer_tokens"].to_pylist()
    known = {text.encode("utf-8", "replace").decode() for text in HOSTILE}
    assert {question[0] for question in one["questions"]} == known


def test_runs_by_name(of):
    text, kept, there = packed([of("first"), of("second", steps=5), of("bare", traces=[])], PLENTY)
    found = opened(text)["runs"]
    assert [run["name"] for run in found] == ["first", "second", "bare"]
    assert [len(run["sets"]) for run in found] == [1, 1, 0]
    assert (kept, there) == (80 + 20, 100)


def test_the_same_bytes_twice(of):
    run = of(hostile=True)
    assert packed([run], PLENTY) == packed([load_run(run.path)], PLENTY)
    assert packed([run], 2000) == packed([run], 2000)


def test_only_letters_that_no_page_can_mistake(of):
    text = packed([of(hostile=True)], PLENTY)[0]
    assert text.isascii() and not set(text) & set("<>&'\"{}%")
    assert compressed({"a": 1}) == compressed({"a": 1})


# -- Limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [20_000, 8_000, 3_000])
def test_what_does_not_fit_is_thinned_out_evenly_by_whole_groups(of, limit):
    run = of(traces=many(800), steps=800)
    text, kept, there = packed([run], limit)
    assert len(text) <= limit
    assert (kept < there, there) == (True, 1600)
    (one,) = opened(text)["runs"][0]["sets"]
    assert kept == len(one["traces"]) == 2 * len(one["groups"])
    assert {group[3] for group in one["groups"]} == {2}
    whole = {row.trace: row for row in many(800)}
    assert all(whole[got[6]].step == got[0] for got in rows(one))
    steps = [group[0] for group in one["groups"]]
    assert (steps[0], steps[-1]) == (1, 800)
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) - min(gaps) <= 1


def test_a_limit_is_made_use_of(of):
    text, _, _ = packed([of(traces=many(800), steps=800)], 20_000)
    assert len(text) > 0.8 * 20_000


def test_thinning_takes_the_same_share_of_each_run_and_set(of):
    held_out = [held_out_row(0, i, trace=f"{math.cos(i)!r}") for i in range(200)]
    run, other = of(traces=many(400), held_out=held_out), of("other", traces=many(200))
    found = opened(packed([run, other], 12_000)[0])["runs"]
    counts = [len(one["groups"]) for run in found for one in run["sets"]]
    assert counts[0] / 400 == pytest.approx(counts[1] / 200, abs=0.01)
    assert counts[0] / 400 == pytest.approx(counts[2] / 200, abs=0.01)
    assert counts[0] < 400


@pytest.mark.parametrize("limit", [0, -1000, 100, 200])
def test_where_there_is_no_room_there_are_no_traces(of, limit):
    text, kept, there = packed([of(traces=many(50), steps=50)], limit)
    assert (kept, there) == (0, 100)
    assert opened(text) == {"runs": [{"name": "run", "sets": []}]}


def test_a_trace_that_is_too_long_for_the_page(of):
    noise = "".join(repr(math.sin(i)) for i in range(5000))
    assert packed([of(traces=[trace_row(trace=noise)])], 5000)[1:] == (0, 1)


def test_nothing_recorded(of):
    text, kept, there = packed([of(traces=[])], PLENTY)
    assert (kept, there) == (0, 0)
    assert opened(text) == {"runs": [{"name": "run", "sets": []}]}


def test_too_much_text_is_thinned_out_before_it_is_compressed(of, monkeypatch):
    run = of(traces=many(400), steps=400)
    columns = ("trace", "sampled_answer", "answer_logps")
    size = sum(run.traces[name].nbytes for name in columns)
    monkeypatch.setattr("native_reasoning.report.page.MOST_TEXT", size / 2 + 1)
    kept, there = packed([run], PLENTY)[1:]
    assert (kept, there) == (pytest.approx(400, abs=10), 800)
