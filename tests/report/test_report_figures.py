"""The figures: each can be drawn of any run, and shows the numbers of the metrics."""

from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from native_reasoning import load_run
from native_reasoning.config.errors import ConfigError
from native_reasoning.records.metrics import STATES
from native_reasoning.report import FIGURES, figure
from native_reasoning.report.figures import (
    COLOURS,
    CURVES,
    MOST_POINTS,
    colour,
    label_of,
    metric_of,
    thinned,
)
from report_runs import evaluation, made_run, trace_row

#: Metrics of every curve, times among them.
ALL = {
    column: lambda step, i=i: 0.5 + 0.01 * step + 0.001 * i
    for i, column in enumerate(name for curves in CURVES.values() for name in curves.columns)
    if not column.startswith("eval_") and column != "collapse_state"
}
ALL.pop("answer_logp_no_think")
TIMES = {name: ALL.pop(name) for name in list(ALL) if name.endswith("_seconds")}
ACCURATE = {
    "accuracy": (0.5, 0.4, 0.7),
    "accuracy_no_think": (0.25, 0.2, 0.3),
    "uplift": (0.1, 0.0, 0.3),
    "trace_length": (5.0, 4.0, 6.0),
}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A run with data for every figure."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    evaluations = {0: evaluation(**ACCURATE), 20: evaluation(**{**ACCURATE, "accuracy": 0.9})}
    return load_run(made_run(folder, metrics=ALL, timings=TIMES, evaluations=evaluations))


@pytest.fixture
def of(tmp_path):
    """Makes and loads a run, of the given name."""
    return lambda name="run", **knobs: load_run(made_run(tmp_path / name, **knobs))


def lines(drawn):
    return {line.name: (list(line.x), list(line.y)) for line in drawn.data}


# -- Each figure -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_of_one_run_of_two_and_of_none(name, full, of):
    one, two, none = figure(name, full), figure(name, full, of("other")), figure(name)
    bare = figure(name, of("begun", steps=0, traces=[]))
    for drawn in (one, two, none, bare):
        assert isinstance(drawn, go.Figure)
        assert drawn.layout.title.text == FIGURES[name][0]
    assert len(one.data) > 0
    assert len(two.data) >= len(one.data)
    assert len(none.data) == len(bare.data) == 0


@pytest.mark.parametrize("name", CURVES)
def test_curves_are_the_metrics(name, full):
    drawn, columns = figure(name, full), CURVES[name].columns
    assert [line.name for line in drawn.data] == [label_of(column) for column in columns]
    for line, column in zip(drawn.data, columns, strict=True):
        table = full.evaluations if column.startswith("eval_") else full.metrics
        table = full.timings if column.endswith("_seconds") else table
        if column == "answer_logp_no_think":
            expected = table["answer_logp"] - table["uplift"]
        else:
            expected = table[column]
        assert list(line.x) == list(expected.index)
        assert list(line.y) == pytest.approx(list(expected), rel=1e-4)
    assert drawn.layout.yaxis.title.text == metric_of(columns[0]).unit
    assert drawn.layout.xaxis.title.text == "step"


def test_figures_are_named_and_explained():
    assert {*CURVES} < {*FIGURES}
    assert all(title and explains.endswith((".", "…")) for title, explains in FIGURES.values())


def test_a_figure_that_there_is_not(of):
    with pytest.raises(ConfigError, match=r"no figure 'uplif' \(did you mean 'uplift'\?\)") as told:
        figure("uplif", of())
    assert all(name in told.value.fix for name in FIGURES)


# -- Curves ----------------------------------------------------------------------------------------


def test_a_baseline_is_the_log_probability_less_uplift(of):
    metrics = {"answer_logp": [-0.5, -0.4], "uplift": [0.25, None]}
    found = lines(figure("answer_logp", of(steps=2, metrics=metrics)))
    assert found == {
        "answer logp": ([1, 2], [-0.5, -0.4]),
        "answer logp without thinking": ([1], [-0.75]),
    }


def test_steps_without_a_number_are_left_out(of):
    metrics = {"uplift": [0.1, None, float("nan"), float("inf"), 0.5]}
    found = lines(figure("uplift", of(steps=5, metrics=metrics)))
    assert found == {"uplift": ([1, 5], [0.1, 0.5])}


@pytest.mark.parametrize(("leaks", "curves"), [(0.0, 1), (0.2, 2)])
def test_uplift_of_tokens_that_are_not_copied_only_where_any_are(of, leaks, curves):
    metrics = {"leakage": leaks, "clean_uplift": 0.3}
    assert len(figure("uplift", of(metrics=metrics)).data) == curves


def test_only_the_gradient_norm_has_a_log_axis(full):
    kinds = {name: figure(name, full).layout.yaxis.type for name in CURVES}
    assert {name for name, kind in kinds.items() if kind == "log"} == {"gradient"}


def test_the_guard_is_shown_by_its_words(of):
    drawn = figure("guard", of(steps=3, metrics={"collapse_state": [0.0, 1.0, 2.0]}))
    assert lines(drawn) == {"collapse state": ([1, 2, 3], [0, 1, 2])}
    axis = drawn.layout.yaxis
    assert (axis.tickvals, axis.ticktext) == ((0, 1, 2), STATES)


# -- Bars of error ---------------------------------------------------------------------------------


def test_intervals_need_not_be_even(full):
    bars = figure("accuracy", full).data[0].error_y
    assert list(bars.array) == pytest.approx([0.2, 0.0])
    assert list(bars.arrayminus) == pytest.approx([0.1, 0.0])
    assert figure("uplift", full).data[0].error_y.array is None


def test_specificity_has_two_standard_errors(of):
    measured = {
        "specificity": lambda step: 0.3 if step % 10 == 0 else None,
        "specificity_se": lambda step: {10: 0.04}.get(step),
    }
    (line,) = figure("specificity", of(metrics=measured)).data
    assert (list(line.x), list(line.y)) == ([10, 20], [0.3, 0.3])
    assert list(line.error_y.array) == pytest.approx([0.08, 0.0])
    assert line.error_y.arrayminus is None


def test_an_evaluation_done_twice_counts_once(of):
    """As where a trainer is asked for one more after its last step; one has no interval."""
    run = of(steps=3, evaluations={0: evaluation(accuracy=(0.1, 0.0, 0.2))})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "eval_accuracy": 0.3}\n')
        file.write('{"step": 3, "eval_accuracy": 0.5, "eval_accuracy_low": 0.2}\n')
    (line,) = figure("accuracy", load_run(run.path)).data
    assert (list(line.x), list(line.y)) == ([0, 3], [0.1, 0.5])
    assert list(line.error_y.arrayminus) == pytest.approx([0.1, 0.3])
    assert list(line.error_y.array) == pytest.approx([0.1, 0.0])


# -- Long runs -------------------------------------------------------------------------------------


def test_thinning_keeps_the_mean():
    """5,000 steps as 1,000 means over five, each at its middle step."""
    values = pd.Series(np.random.default_rng(0).normal(size=5000), index=range(1, 5001))
    found = thinned(values)
    assert len(found) == MOST_POINTS == 1000
    assert found.mean() == pytest.approx(values.mean())
    assert list(found.index[:3]) == [3, 8, 13]
    assert found.loc[8] == pytest.approx(values.loc[6:10].mean())


@pytest.mark.parametrize("count", [0, 1, 999, 1000])
def test_short_curves_are_not_thinned(count):
    values = pd.Series(np.arange(count, dtype=float), index=range(count))
    assert thinned(values).equals(values)


@pytest.mark.parametrize("count", [1001, 1500, 1999, 4999])
def test_any_length_is_thinned_to_the_same_number_of_points(count):
    found = thinned(pd.Series(np.arange(count, dtype=float), index=range(count)))
    assert len(found) == MOST_POINTS
    assert found.index.is_monotonic_increasing and found.index.is_unique
    assert found.to_numpy() == pytest.approx(found.index.to_numpy(), abs=0.5)


def test_a_long_run(of):
    metrics = {"uplift": lambda step: float(step), "specificity": 0.3, "specificity_se": 0.1}
    run = of(steps=2500, metrics=metrics, traces=[])
    (line,) = figure("uplift", run).data
    assert len(line.x) == 1000
    assert line.mode == "lines"
    (line,) = figure("specificity", run).data
    assert len(line.x) == 1000
    assert line.error_y.array is None  # of single steps, not of the means


# -- Several runs ----------------------------------------------------------------------------------


def test_runs_over_each_other(of):
    first, second = of("first"), of("second", metrics={"uplift": 0.5})
    drawn = figure("uplift", first, second)
    assert [line.name for line in drawn.data] == ["first: uplift", "second: uplift"]
    assert [line.meta[0] for line in drawn.data] == ["first", "second"]
    assert set(drawn.data[1].y) == {0.5}
    names = [line.name for line in figure("gradient", first, second).data]
    assert names == ["first", "second"]


def test_a_colour_is_a_run_and_a_dash_a_curve(of):
    drawn = figure("shares", of("first"), of("second"))
    looks = [(line.meta[0], line.name.split(": ")[1], line.line) for line in drawn.data]
    for run, label, look in looks:
        for other_run, other_label, other in looks:
            assert (run == other_run) == (look.color == other.color)
            assert (label == other_label) == (look.dash == other.dash)


def test_curves_of_one_run_have_colours_of_their_own(of):
    colours = [line.line.color for line in figure("reward", of()).data]
    assert len(colours) == len({*colours}) == 2


# -- Bars ------------------------------------------------------------------------------------------


def test_uplift_along_the_answer(of):
    row = trace_row(
        answer_logps=[-1.0, -2.0], baseline_logps=[-2.0, -1.5], answer_tokens=["a", "b"]
    )
    (bars,) = figure("places", of(traces=[row])).data
    assert (list(bars.x), list(bars.y)) == ([1, 6], [1.0, -0.5])


def test_places_without_a_number_are_left_out(of):
    nan, inf = float("nan"), float("inf")
    row = trace_row(
        answer_logps=[-1.0, nan, -1.0],
        baseline_logps=[-2.0, -1.0, -inf],
        answer_tokens=["a", "b", "c"],
    )
    (bars,) = figure("places", of(traces=[row])).data
    assert (list(bars.x), list(bars.y)) == ([1], [1.0])


# -- Columns ---------------------------------------------------------------------------------------


def test_a_column_that_there_is_not(of):
    run = of()
    for name in ("nothing", "eval_nothing", "eval_accuracy"):
        assert run.column(name).empty
    assert of("other", metrics={"uplift": None}).column("answer_logp_no_think").empty


@pytest.mark.parametrize("word", ["much", [1], None])
def test_a_column_that_holds_words(of, word):
    run = of(steps=2, metrics={"uplift": [0.5, word]})
    assert run.column("uplift").to_dict() == {1: 0.5}


def test_a_short_collapse_is_seen_in_a_long_run(of):
    states = [0.0] * 3000
    states[1234] = 2.0
    (line,) = figure("guard", of(steps=3000, metrics={"collapse_state": states}, traces=[])).data
    assert len(line.x) == 1000
    assert sorted({*line.y}) == [0.0, 2.0]


def test_a_name_of_a_run_is_no_markup(of):
    """But what a page's boxes are compared with is the name itself."""
    first, second = of("<b>&y"), of("second")
    (line, *_), (bars, _) = (figure(name, first, second).data for name in ("reward", "places"))
    assert line.name == "&lt;b&gt;&amp;y: reward"
    assert bars.name == "&lt;b&gt;&amp;y"
    assert line.meta[0] == bars.meta[0] == "<b>&y"


# -- Colours ---------------------------------------------------------------------------------------


def channels(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)]) / 255


def test_no_two_colours_are_alike():
    apart = [np.abs(channels(a) - channels(b)).max() for a, b in combinations(COLOURS, 2)]
    assert min(apart) > 0.04
    assert colour(len(COLOURS)) == COLOURS[0]


@pytest.mark.parametrize("text", COLOURS)
def test_colours_can_be_read_on_white_and_on_black(text):
    """Contrast as in WCAG 2, of 3 : 1."""
    x = channels(text)
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    light = light @ (0.2126, 0.7152, 0.0722)
    assert 1.05 / (light + 0.05) > 3 and (light + 0.05) / 0.05 > 3


def test_a_ninth_run_has_a_colour_of_its_own(of):
    runs = [of(f"run-{i}", steps=1) for i in range(10)]
    expected = [colour(i) for i in range(10)]
    assert [line.line.color for line in figure("gradient", *runs).data] == expected
    assert [bars.marker.color for bars in figure("places", *runs).data] == expected


# -- Times -----------------------------------------------------------------------------------------


def test_a_run_that_slows_down(of):
    times = {"sampling_seconds": lambda step: float(step), "scoring_seconds": 0.0}
    found = lines(figure("seconds", of(steps=3, timings=times)))
    assert found == {
        "step": ([1, 2, 3], [1.75] * 3),
        "sampling": ([1, 2, 3], [1.0, 2.0, 3.0]),
        "other": ([1, 2, 3], [0.25] * 3),
    }


def test_every_stage_of_several_runs_has_a_dash_of_its_own(of):
    drawn = figure("seconds", of("first", timings=TIMES), of("second", timings=TIMES))
    assert len(drawn.data) == 20
    assert len({line.line.dash for line in drawn.data}) == 10


def test_words_among_the_times(of):
    run = of(steps=3, timings={"sampling_seconds": [1.0, "long", 3.0]})
    assert lines(figure("seconds", run))["sampling"] == ([1, 3], [1.0, 3.0])
