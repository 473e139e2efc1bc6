"""The verdict: which measure is taken, what it is said to mean, and what is said beside it."""

import pytest

from native_reasoning import load_run
from native_reasoning.records.folder import RunFolder
from native_reasoning.records.metrics import STATES
from native_reasoning.report.verdict import verdict
from report_runs import evaluation, made_run, trace_row

GAIN = {"accuracy_gain": (0.4, 0.3, 0.5)}
ACCURATE = {"accuracy": 0.9, "accuracy_no_think": 0.5, "uplift": (-0.2, -0.3, -0.1), **GAIN}


def of(folder, **knobs):
    return verdict(load_run(made_run(folder / "run", **knobs)))


def lifted(*nats, step=1):
    """A question for each uplift, on an answer of one token."""
    return [
        trace_row(step, i, answer_logps=[-2.0 + x], baseline_logps=[-2.0], answer_tokens=["4"])
        for i, x in enumerate(nats)
    ]


# -- Which measure ---------------------------------------------------------------------------------


def test_accuracy_on_held_out_questions_comes_first(tmp_path):
    found = of(tmp_path, evaluations={20: evaluation(50, **ACCURATE)})
    assert found.measure == (
        "accuracy with thinking less accuracy without, on 50 held-out questions"
    )
    assert (found.state, found.headline) == ("helped", "Thinking helped")
    assert (found.number, found.range) == ("+40.0 points", "+30.0 to +50.0")
    assert found.interval.n == 50
    assert found.notes[0] == (
        "90.0 % of 50 held-out questions are answered right after thinking, 50.0 % without."
    )


def test_the_last_evaluation_counts_and_the_first_is_told(tmp_path):
    before = {"accuracy": 0.0, "accuracy_no_think": 0.01, "accuracy_gain": (-0.01, -0.02, 0.0)}
    found = of(tmp_path, evaluations={0: evaluation(50, **before), 20: evaluation(50, **ACCURATE)})
    assert found.number == "+40.0 points"
    assert found.notes[0].endswith(" At step 0 it was 0.0 % and 1.0 %.")


def test_the_model_that_was_loaded_at_the_end_counts(tmp_path):
    """That of step 10, evaluated once more after step 20 had been."""
    worse = {**ACCURATE, "accuracy_gain": (-0.4, -0.5, -0.3)}
    path = made_run(tmp_path / "run", evaluations={20: evaluation(50, **worse)})
    RunFolder(path).append_metrics(10, evaluation(50, **ACCURATE))
    run = load_run(path)
    assert verdict(run).number == "+40.0 points"
    assert run.column("eval_accuracy_gain").to_dict() == {10: 0.4, 20: -0.4}
    assert list(run.column("eval_accuracy_gain").index) == [10, 20]


@pytest.mark.parametrize(
    ("accuracy", "without", "points"),
    [(0.019, 0.019, False), (0.02, 0.0, True), (0.0, 0.02, True), (0.0, 0.0, False)],
)
def test_where_hardly_any_answer_is_right_it_is_uplift(tmp_path, accuracy, without, points):
    values = {**ACCURATE, "accuracy": accuracy, "accuracy_no_think": without}
    found = of(tmp_path, evaluations={20: evaluation(50, **values)})
    assert (found.unit == "points") == points
    if not points:
        assert found.measure.endswith("after a trace less after none, on 50 held-out questions")
        assert (found.state, found.number) == ("hurt", "−0.200 nats per token")
        assert found.range == "−0.300 to −0.100"
        assert not any("answered right" in note for note in found.notes)


def test_without_evaluations_it_is_uplift_in_training(tmp_path):
    """Two questions, met in each of ten steps; (0.5 + 0.1) / 2 = 0.3 nats a token."""
    found = of(tmp_path, steps=20)
    assert found.measure.endswith("on the 2 training questions of the last ten recorded steps")
    assert found.interval.n == 2
    assert (found.state, found.number) == ("helped", "+0.300 nats per token")
    assert found.range == "+0.300 to +0.300"


def test_uplift_in_training_is_of_the_last_ten_recorded_steps(tmp_path):
    """Steps 2 to 11 with 1 nat each; step 1, with −9, is forgotten."""
    rows = [*lifted(-9.0), *(row for step in range(2, 12) for row in lifted(1.0, step=step))]
    found = of(tmp_path, traces=rows)
    assert (found.number, found.interval.n) == ("+1.000 nats per token", 1)


def test_a_question_met_in_several_steps_is_one(tmp_path):
    """Question 0 with 1 nat in two steps and 4 in a third, question 1 with 4: (2 + 4) / 2, not the
    (1 + 1 + 4 + 4) / 4 of four independent ones."""
    rows = [*lifted(1.0, 4.0, step=1), *lifted(1.0, step=2), *lifted(4.0, step=3)]
    found = of(tmp_path, traces=rows)
    assert (found.number, found.interval.n) == ("+3.000 nats per token", 2)
    assert found.range == "+2.000 to +4.000"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([(1, 0), (2, 1)], None),
        ([(step, step) for step in range(1, 20)], None),
        ([(1, 0), (2, 0)], "1 of them had been trained on before."),
        ([(1, 0), *((step, 0) for step in range(2, 12))], "1 of them had been trained on before."),
        (
            [(1, 0), (1, 1), *((step, step % 3) for step in range(2, 12))],
            "3 of them had been trained on before.",
        ),
    ],
)
def test_questions_that_had_been_trained_on_before_are_told(tmp_path, rows, told):
    found = of(tmp_path, traces=[trace_row(*row) for row in rows])
    assert "training questions" in found.measure
    said = [note for note in found.notes if "trained on before" in note]
    assert said == [told] * (told is not None)


def test_of_held_out_questions_nothing_was_trained_on(tmp_path):
    found = of(tmp_path, evaluations={20: evaluation(50, **ACCURATE)})
    assert not any("trained on before" in note for note in found.notes)


@pytest.mark.parametrize(
    ("metrics", "steps", "note"),
    [
        ({}, 5, "There are neither evaluations nor recorded traces to measure it with."),
        ({"empty": 1.0}, 5, "This run trains on answers alone: it writes no traces."),
        ({}, 0, "No step has been logged yet."),
    ],
)
def test_nothing_to_measure_it_with(tmp_path, metrics, steps, note):
    found = of(tmp_path, steps=steps, metrics=metrics, traces=[])
    assert (found.state, found.headline) == ("unknown", "Nothing can be said yet")
    assert (found.number, found.range, found.interval) == ("–", "", None)
    assert found.notes[0] == note


# -- What it is said to mean -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "state"),
    [
        ((0.1, 0.001, 0.2), "helped"),
        ((0.1, 0.0, 0.2), "even"),
        ((0.1, -0.1, 0.2), "even"),
        ((-0.1, -0.2, 0.0), "even"),
        ((-0.1, -0.2, -0.001), "hurt"),
        ((0.0, 0.0, 0.0), "even"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy_gain", "uplift"])
def test_states(tmp_path, interval, state, name):
    right = 0.5 if name == "accuracy_gain" else 0.0
    values = {"accuracy": right, "accuracy_no_think": right, name: interval}
    assert of(tmp_path, evaluations={20: evaluation(**values)}).state == state


def test_what_is_no_number_says_nothing(tmp_path):
    """A model that has come apart has no log-probabilities."""
    rows = lifted(float("nan"), float("nan"))
    found = of(tmp_path, traces=rows)
    assert (found.state, found.interval, found.number) == ("unknown", None, "–")
    assert found.notes[0] == "What was measured is not a finite number."


def test_an_evaluation_that_lost_its_numbers_does_not_count(tmp_path):
    nan = float("nan")
    values = {**evaluation(50, **ACCURATE), "eval_questions": nan, "eval_accuracy_gain": nan}
    found = of(tmp_path, evaluations={0: evaluation(50, **ACCURATE), 20: values})
    assert found.measure.endswith("training questions of the last ten recorded steps")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy_gain", 0.8744, "+87.4 points"),
        ("accuracy_gain", -0.0825, "−8.2 points"),
        ("accuracy_gain", 0.0, "0.0 points"),
        ("accuracy_gain", -0.0004, "0.0 points"),
        ("uplift", 0.12349, "+0.123 nats per token"),
        ("uplift", -0.0004, "0.000 nats per token"),
        ("uplift", -1.5, "−1.500 nats per token"),
    ],
)
def test_numbers_as_people_read_them(tmp_path, name, value, text):
    right = 0.5 if name == "accuracy_gain" else 0.0
    values = {"accuracy": right, "accuracy_no_think": right, name: (value, value - 1, value + 1)}
    assert of(tmp_path, evaluations={20: evaluation(**values)}).number == text


# -- What is said beside it ------------------------------------------------------------------------


def notes(folder, word, **knobs):
    return [note for note in of(folder, **knobs).notes if word in note]


@pytest.mark.parametrize(
    ("value", "error", "about"),
    [
        (0.21, 0.1, "Traces are about their question"),
        (0.2, 0.1, "Whether traces are about their question cannot be told"),
        (0.124, 0.531, "Whether traces are about their question cannot be told"),
        (0.004, 0.008, "Another question's trace does as well"),
        (-0.2, 0.1, "Another question's trace does as well"),
        (-0.3, 0.1, "Another question's trace does better"),
    ],
)
def test_traces_are_about_their_question_beyond_two_errors(tmp_path, value, error, about):
    measured = {"specificity": value, "specificity_se": error}
    (note,) = notes(tmp_path, "specificity", metrics=measured)
    assert note.startswith(about)
    sign = "+" if value > 0 else "−"
    told = f"(specificity {sign}{abs(value):.3f} ± {error:.3f} nats per token, step 20)."
    assert note.endswith(told)


def test_specificity_of_the_last_exchange_that_has_an_error(tmp_path):
    """One prompt alone has no standard error, and says nothing."""
    measured = {
        "specificity": lambda step: {10: 0.5, 20: -0.5}.get(step),
        "specificity_se": lambda step: {10: 0.1}.get(step),
    }
    (note,) = notes(tmp_path / "1", "specificity", metrics=measured)
    assert note.startswith("Traces are about") and "step 10" in note
    assert notes(tmp_path / "2", "specificity", metrics={"specificity": 0.5}) == []


@pytest.mark.parametrize(("plain", "said"), [(0.35, True), (0.25, False)])
def test_answers_that_were_cut_without_thinking_alone(tmp_path, plain, said):
    right = {"accuracy": 0.5, "accuracy_no_think": 0.2, "accuracy_gain": (0.3, 0.2, 0.4)}
    found = evaluation(**right, cut=0.2, cut_no_think=plain, max_answer_length=16)
    told = notes(tmp_path, "were cut", evaluations={20: found})
    assert len(told) == said
    if said:
        assert told[0].startswith("Answers were cut at 16 tokens: 35.0 % of those without thinking")
        assert "20.0 % of those after it" in told[0]


def test_a_reward_that_is_the_end_of_turns(tmp_path):
    half = {"reward_share_end": 0.5, "spread_share_end": 0.4, "reward_share_space": 0.1}
    assert notes(tmp_path / "half", "Over the last", metrics=half) == []
    most = half | {"spread_share_end": lambda step: 0.1 if step <= 10 else 0.9}  # of the last ten
    (note,) = notes(tmp_path / "most", "Over the last", metrics=most)
    assert note.startswith("Over the last 10 steps the end-of-turn token has 50 % of the reward")
    assert "90 % of its spread" in note
    assert note.endswith("--objective.reward-span answer leaves that token out of the reward.")


@pytest.mark.parametrize(("lost", "said"), [(0.30, True), (0.06, True), (0.04, False)])
def test_a_baseline_that_got_worse(tmp_path, lost, said):
    """20 steps: the mean of the last two less that of the first two."""
    baseline = [-1.0, -1.2, *[-1.1] * 16, -1.0 - lost, -1.2 - lost]
    metrics = {
        "answer_logp": lambda step: baseline[step - 1] + 0.01 * step,
        "uplift": lambda step: 0.01 * step,
    }
    found = notes(tmp_path, "Without thinking", metrics=metrics)
    assert bool(found) == said
    if said:
        assert f"lost {lost:.2f} nats during training: " in found[0]


@pytest.mark.parametrize(
    ("uplift", "told"),
    [(0.5, "0.30 of the 0.50 nats of uplift are"), (0.1, "0.10 of the 0.10 nats of uplift are")],
)
def test_no_more_of_the_uplift_is_a_worse_start_than_there_is(tmp_path, uplift, told):
    metrics = {"answer_logp": lambda step: (-1.0 if step < 10 else -1.3) + uplift, "uplift": uplift}
    (found,) = notes(tmp_path, "Without thinking", metrics=metrics)
    assert f": {told} a worse start, not a better end." in found


@pytest.mark.parametrize(
    ("gain", "uplift", "told"),
    [
        ((0.4, 0.3, 0.5), (-0.007, -0.009, -0.005), "−0.007 nats per token (−0.009 to −0.005)."),
        ((-0.4, -0.5, -0.3), (0.1, 0.05, 0.2), "+0.100 nats per token (+0.050 to +0.200)."),
        ((0.4, 0.3, 0.5), (-0.1, -0.2, 0.1), None),
        ((0.4, 0.3, 0.5), (0.1, 0.05, 0.2), None),
        ((0.1, -0.1, 0.5), (-0.1, -0.2, -0.05), None),
    ],
)
def test_uplift_that_points_the_other_way_is_told(tmp_path, gain, uplift, told):
    values = {**ACCURATE, "accuracy_gain": gain, "uplift": uplift}
    found = notes(tmp_path, "other way", evaluations={20: evaluation(50, **values)})
    said = f"Uplift on the same questions points the other way: {told}"
    assert found == ([said] if told else [])


@pytest.mark.parametrize("name", ["specificity_se", "empty", "uplift", "collapse_state"])
def test_a_word_among_the_numbers_ends_no_verdict(tmp_path, name):
    found = of(tmp_path, metrics={"specificity": 0.5, "specificity_se": 0.1, name: ["much"] * 20})
    assert found.state == "helped"


def test_words_in_an_evaluation_end_no_verdict(tmp_path):
    words = {f"eval_{name}": "much" for name in ("questions", "accuracy", "accuracy_gain_low")}
    evaluations = {step: {**evaluation(50, **ACCURATE), **words} for step in (0, 20)}
    assert "training questions" in of(tmp_path, evaluations=evaluations).measure


def test_a_baseline_that_got_better_or_was_seen_once_is_not_spoken_of(tmp_path):
    rising = {"answer_logp": lambda step: 0.1 * step, "uplift": 0.0}
    assert notes(tmp_path / "1", "Without thinking", metrics=rising) == []
    assert notes(tmp_path / "2", "Without thinking", steps=1) == []


@pytest.mark.parametrize(("questions", "rough"), [(29, True), (30, False)])
def test_few_questions_are_told(tmp_path, questions, rough):
    found = of(tmp_path, evaluations={20: evaluation(questions, **ACCURATE)})
    note = f"Only {questions} questions: the interval is rough."
    assert (note in found.notes) == rough


@pytest.mark.parametrize(
    ("now", "worst", "note"),
    [
        (0, 0, "The collapse guard says healthy."),
        (0, 2, "The collapse guard says healthy; it had said collapsed before."),
        (1, 1, "The collapse guard says drifting."),
        (1, 2, "The collapse guard says drifting; it had said collapsed before."),
        (2, 2, "The collapse guard says collapsed."),
    ],
)
def test_what_the_guard_says(tmp_path, now, worst, note):
    assert STATES[now] in note
    states = {"collapse_state": [*[0.0] * 10, float(worst), *[float(now)] * 9]}
    assert notes(tmp_path, "guard", metrics=states) == [note]


def test_why_the_guard_says_it(tmp_path):
    falls = {
        "answer_logp": lambda step: -1.0 if step == 1 else -4.0,
        "collapse_state": lambda step: 0.0 if step < 11 else 2.0,
    }
    (note,) = notes(tmp_path, "guard", metrics=falls)
    assert note.startswith("The collapse guard says collapsed: reference answers have -4.00 nats")
    assert "--learning-rate" in note


def test_how_different_traces_were_and_are(tmp_path):
    varied = {
        "trace_entropy": lambda step: 1.5 if step == 1 else 0.25,
        "distinct": lambda step: 0.9 if step < 11 else 0.125,
    }
    (note,) = notes(tmp_path / "1", "Variety", metrics=varied)
    told = "trace entropy (nats) 1.5 to 0.25, distinct 90.0 % to 12.5 %"
    assert note == f"Variety of traces, from the first step to the last 10: {told}."
    assert notes(tmp_path / "2", "Variety") == []


def test_without_a_guard_nothing_is_said_of_it(tmp_path):
    assert notes(tmp_path, "guard", metrics={"collapse_state": None}) == []


@pytest.mark.parametrize(
    ("first", "last", "told"),
    [
        ((0.1, 0.05, 0.15), (0.4, 0.3, 0.5), "training made it worth more"),
        ((0.4, 0.3, 0.5), (0.1, 0.05, 0.15), "training made it worth less"),
        ((0.1, 0.05, 0.35), (0.4, 0.3, 0.5), "no difference to the end can be shown"),
    ],
)
def test_what_training_did_to_it(tmp_path, first, last, told):
    measured = {
        step: evaluation(accuracy=0.5, accuracy_no_think=0.2, accuracy_gain=gain)
        for step, gain in ((0, first), (20, last))
    }
    run = load_run(made_run(tmp_path / "run", evaluations=measured))
    (note,) = [note for note in verdict(run).notes if "thinking was worth" in note]
    assert note.startswith(f"At step 0 thinking was worth +{100 * first[0]:.1f} points")
    assert note.endswith(f": {told}.")
