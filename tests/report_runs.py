"""Run folders that no training made, with numbers that can be worked out by hand."""

from pathlib import Path

from native_reasoning.records.folder import HeldOutRow, RunFolder, TraceRow

#: What a model or a data file may hold, and no page may be harmed by.
HOSTILE = (
    "<script>alert(1)</script>",
    "</textarea><img src=http://example.org/x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "javascript:alert(1)",
    "{{ 7 * 7 }} {% raw %}",
    "x" * 100_000,
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈",
    "שלום \u202eevil\u202c مرحبا",
    "a\x00b\x1b[31mred\x07",
    "lone \ud800 surrogate",
    "Z\u0351\u036b\u0343a\u0329\u034el\u034fgo",
    "-->]]>&amp;\"'`",
    '<img src=x onerror="window.hacked=1">',
)

#: Of the figures, those that tests of other things draw: for speed.
FEW = ("uplift", "gradient", "places")
#: Metrics of a step, as functions of it.
METRICS = {
    "reward": lambda step: 0.2 + 0.01 * step,
    "reward_baseline": lambda step: 0.2,
    "uplift": lambda step: 0.01 * step,
    "answer_logp": lambda step: -1 + 0.01 * step,
    "closed": lambda step: 1.0,
    "empty": lambda step: 0.0,
    "grad_norm": lambda step: 1 / step,
    "collapse_state": lambda step: 0.0,
}
TIMINGS = {"sampling_seconds": 1.0, "scoring_seconds": 0.5, "other_seconds": 0.25}


def trace_row(step=1, row_id=0, k=0, **changes) -> TraceRow:
    """A trace that lifts the answer ``4<end>`` by 0.5 and 0.1 nats."""
    values = {
        "prompt": f"What is {row_id} + {row_id}?",
        "trace": f"{row_id} and {row_id}",
        "answer": "4",
        "sampled_answer": "",
        "closed": True,
        "ended": False,
        "length": 5,
        "reward": 0.5,
        "baseline_reward": 0.25,
        "advantage": 0.125,
        "answer_logps": [-0.5, -0.1],
        "baseline_logps": [-1.0, -0.2],
        "answer_tokens": ["4", "<end>"],
    }
    return TraceRow(step=step, row_id=row_id, k=k, **{**values, **changes})


def held_out_row(step=0, row_id=0, k=0, **changes) -> HeldOutRow:
    """A held-out question, answered right after the trace and wrong without."""
    values = {
        "prompt": f"And {row_id} + {row_id}?",
        "trace": "add them",
        "answer": "4",
        "sampled_answer": "4",
        "answer_no_think": "5",
        "closed": True,
        "length": 3,
        "correct": 1.0,
        "correct_no_think": 0.0,
        "answer_logps": [-0.5, -0.1],
        "baseline_logps": [-1.0, -0.2],
        "answer_tokens": ["4", "<end>"],
    }
    return HeldOutRow(step=step, row_id=row_id, k=k, **{**values, **changes})


def evaluation(questions=100, **values) -> dict[str, float]:
    """What an evaluation logs: a number, or a mean with both ends of its interval."""
    out: dict[str, float] = {"eval_questions": questions}
    for name, value in values.items():
        ends = value if isinstance(value, tuple) else (value, value, value)
        names = ("", "_low", "_high")
        out |= {f"eval_{name}{end}": x for end, x in zip(names, ends, strict=True)}
    return out


def made_run(
    folder,
    *,
    steps=20,
    metrics=None,
    timings=None,
    evaluations=None,
    traces=None,
    held_out=(),
    config=None,
    data_hash="0" * 64,
    hostile=False,
) -> Path:
    """A run folder of so many steps.

    ``metrics`` changes some of ``METRICS``: a function of the step, a list or a number; a step for
    which it is None lacks it. ``timings`` does so for ``TIMINGS``. ``evaluations``
    has the values logged after a step. ``traces`` and ``held_out`` are rows; unless they are given,
    each step has two traces of two questions.
    ``hostile`` puts ``HOSTILE`` texts into every field that a model or a data file fills.
    """
    run = RunFolder.create(folder, resume=False)
    settings = {"preset": "nrt-ws", "model": "tiny/model", "data": "qa.jsonl", "max_steps": steps}
    run.write_config({**settings, **(config or {})}, data_hash=data_hash, seed=0)
    for step in range(1, steps + 1):
        named = {name: _at(value, step) for name, value in {**METRICS, **(metrics or {})}.items()}
        run.append_metrics(
            step, {name: value for name, value in named.items() if value is not None}
        )
        took = {"step_seconds": 1.75, **TIMINGS, **(timings or {})}
        run.append_timings(step, {name: _at(value, step) for name, value in took.items()})
    for step, values in (evaluations or {}).items():
        run.append_metrics(step, values)
    if traces is None:
        places = [(s, row, k) for s in range(1, steps + 1) for row in (0, 1) for k in (0, 1)]
        traces = [trace_row(*place) for place in places]
    if hostile:
        traces, held_out = _hostile(trace_row), _hostile(held_out_row)
    run.write_traces(traces, max([steps, *(row.step for row in traces)]))
    for step in sorted({row.step for row in held_out}):
        run.write_held_out([row for row in held_out if row.step == step])
    return run.path


def draw_few(monkeypatch) -> None:
    """Lets a page have only ``FEW`` figures; they take most of its time."""
    from native_reasoning.report.figures import FIGURES

    few = {name: FIGURES[name] for name in FEW}
    monkeypatch.setattr("native_reasoning.report.page.FIGURES", few)


def _at(value, step):
    return (
        value(step) if callable(value) else value[step - 1] if hasattr(value, "__len__") else value
    )


def _hostile(row):
    """Each text in each field; enough of them that tables of words and tokens show them."""
    rows = []
    for step in range(1, 6):
        for i, text in enumerate(HOSTILE):
            other = HOSTILE[(i + step) % len(HOSTILE)]
            logps = {"answer_logps": [-0.5, -0.1], "baseline_logps": [-1.0, -0.05]}
            texts = {"prompt": text, "trace": (other + " ") * 3, "answer": other}
            said = {"sampled_answer": text, "answer_tokens": [text, other]}
            if row is held_out_row:
                said["answer_no_think"] = other
            rows.append(row(step, i, 0, **logps, **texts, **said))
    return rows


def trained(folder, last=12):
    """A run: four questions a step, three traces each, and the same held-out questions twice."""
    traces = [
        trace_row(
            step,
            row,
            k,
            prompt=f"How many {('pears', 'apples')[row % 2]} are {row} and {step}?",
            trace=f"count the fruit {k} times" + " or not" * (step % 3),
            advantage=[0.5, -1.0, 1.5][(k + row) % 3],
            answer_logps=[-1.0 + 0.4 * (k - 1) + 0.01 * step, -0.2],
        )
        for step in range(1, last + 1)
        for row in range(4)
        for k in range(3)
    ]
    asked = [
        held_out_row(step, row, trace=f"at step {step}", correct=float(row < step))
        for step in (0, last)
        for row in range(3)
    ]
    measured = {
        0: evaluation(accuracy=0.1, accuracy_no_think=0.1, accuracy_gain=(0.0, -0.1, 0.1)),
        last: evaluation(accuracy=0.9, accuracy_no_think=0.1, accuracy_gain=(0.8, 0.7, 0.9)),
    }
    return made_run(folder, steps=last, traces=traces, held_out=asked, evaluations=measured)
