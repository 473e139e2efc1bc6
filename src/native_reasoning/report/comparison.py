"""Is a method better than another? Runs of several arms on the same held-out questions.

An arm is what was trained in one way with several seeds. A difference between two arms is taken
question by question, each averaged over the arm's seeds, with a bootstrap interval over questions
and seeds (``grading.paired_interval`` has the method and its source).

Each arm is measured *as it answers*: after a trace where it was trained with traces. An arm that
was trained on answers alone (sft), and the untrained base, answer in the way in which they do
better: that can only favour what the others are compared with. Arms are told apart by accuracy;
where hardly any answer of any arm is right, by the log-probability of the reference answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from native_reasoning.config.errors import RunError
from native_reasoning.evaluation.grading import Interval, paired_interval
from native_reasoning.records.folder import read_config, read_metrics, read_questions
from native_reasoning.records.metrics import BOUNDS, COLLAPSE, METRICS, STATES
from native_reasoning.report.verdict import FEW, LEAST_ACCURACY, nought

#: In the folder of a comparison: what ``compare`` returns.
RESULT = "compare.json"
BASE = "base"
#: What is measured after a trace, and the same after none; None where there is no such thing.
MEASURES = {
    "accuracy": "accuracy_no_think",
    "accuracy_greedy": "accuracy_no_think_greedy",
    "pass_at_k": None,
    "answer_logp": "answer_logp_no_think",
    "trace_length": None,
    "trace_entropy": None,
}
IN_BRACKETS = "In brackets: 95 % intervals over questions and seeds."
#: By which arms are told apart, in words.
_WORDS = {"accuracy": "sampled answers", "accuracy_greedy": "greedy ones"}


@dataclass(frozen=True, eq=False)
class Arm:
    """The finished runs of one arm. ``numbers`` has (S, Q) values of S seeds and Q questions by
    name, ``objective`` the settings of an objective that they were trained with, ``guard`` the
    worst that the collapse guard said in each run that has one."""

    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    prompts: int
    objective: Mapping[str, Any]
    guard: tuple[str, ...]
    asked: tuple[str, ...]
    numbers: Mapping[str, np.ndarray]

    @property
    def control(self) -> bool:
        """Whether no reward tells its traces apart."""
        o = self.objective
        return o["traces"] == "sampled" and (
            o["reward"] == "none" or o.get("advantages") == "permuted"
        )

    @property
    def supervised(self) -> bool:
        """Whether it is trained on answers alone."""
        return self.objective["traces"] == "empty"


def load_arm(folders: Sequence[Path]) -> Arm:
    """The arm whose runs lie in these folders. Raises RunError where a run has no evaluation, or
    two runs were asked different questions."""
    asked: tuple[str, ...] = ()
    rows, configs, steps, guard = [], [], [], []
    for folder in folders:
        newest = last_evaluation(folder)
        here = tuple(row["asked"] for row in newest)
        asked = asked or here
        if here != asked or not here:
            raise _other_questions(folder, folders[0])
        rows.append(newest)
        configs.append(read_config(folder))
        logged = read_metrics(folder)
        steps.append(max((line["step"] for line in logged if "loss" in line), default=0))
        states = [int(line[COLLAPSE]) for line in logged if line.get(COLLAPSE) is not None]
        guard += [STATES[max(states)]] if states else []
    names = [name for name in rows[0][0] if all(_known(row, name) for run in rows for row in run)]
    settings = configs[0]["config"]
    return Arm(
        runs=tuple(folder.name for folder in folders),
        seeds=tuple(config["seed"] for config in configs),
        steps=tuple(steps),
        prompts=settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"],
        objective=settings["resolved_objective"],
        guard=tuple(guard),
        asked=asked,
        numbers={name: np.array([[row[name] for row in run] for run in rows]) for name in names},
    )


def last_evaluation(folder: Path) -> list[dict[str, Any]]:
    """The rows of questions.jsonl of the newest step, by question; [] where there are none. Of a
    step that was evaluated twice the later rows stay."""
    found = read_questions(folder)
    step = max((row["step"] for row in found), default=0)
    newest = {row["row_id"]: row for row in found if row["step"] == step}
    return [newest[row_id] for row_id in sorted(newest)]


def _known(row: Mapping[str, Any], name: str) -> bool:
    return name not in ("step", "row_id", "non_finite") and isinstance(row.get(name), int | float)


def _other_questions(folder: Path, first: Path) -> RunError:
    return RunError(
        f"{folder} was evaluated on other held-out questions than {first}",
        why="arms are compared question by question",
        fix="begin the comparison anew in another folder, with one file of held-out questions",
    )


# -- Numbers ---------------------------------------------------------------------------------------


def compare(
    folders: Mapping[str, Sequence[Path]], failed: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What compare.json holds of the finished runs of each arm, in order: ``verdict`` (its
    ``headline`` first), ``arms``, and the runs that ``failed``, with why. Shares are from 0 to 1,
    log-probabilities in nats per token. Raises RunError where runs cannot be compared."""
    arms = {label: load_arm(paths) for label, paths in folders.items() if paths}
    if not arms:
        raise RunError(
            "no run of the comparison has come to its end",
            why="there is nothing to compare",
            fix="look at the errors above, then run the same command again",
        )
    first, *others = arms.values()
    for arm in others:
        if arm.asked != first.asked:
            raise _other_questions(Path(arm.runs[0]), Path(first.runs[0]))
    measure = _measure(arms.values())
    used = {label: _as_used(label, arm, measure) for label, arm in arms.items()}
    reference = _reference(arms, used, measure)
    told = {}
    for label, arm in arms.items():
        against = {} if label == reference else _differences(used[label], used[reference])
        told[label] = {
            "runs": list(arm.runs),
            "seeds": list(arm.seeds),
            "steps": max(arm.steps),
            "prompts_per_step": arm.prompts,
            "control": label != BASE and arm.control,
            "answers": "after a trace" if _thinks(label, arm, measure) else "after none",
            "guard": list(arm.guard),
            "measured": {name: _plain(_interval(name, x)) for name, x in arm.numbers.items()},
            "as_used": {name: _plain(_interval(name, x)) for name, x in used[label].items()},
            "difference": {name: _plain(interval) for name, interval in against.items()},
        }
    return {
        "verdict": _verdict(arms, used, reference, measure),
        "questions": len(first.asked),
        "reference": reference,
        "measure": measure,
        "arms": told,
        "failed": dict(failed or {}),
    }


def _measure(arms: Any) -> str:
    """By what arms are told apart."""
    names = ("accuracy", "accuracy_no_think")
    best = max(float(arm.numbers[name].mean()) for arm in arms for name in names)
    return "accuracy" if best >= LEAST_ACCURACY else "answer_logp"


def _thinks(label: str, arm: Arm, measure: str) -> bool:
    """Whether the arm answers after a trace."""
    if label != BASE and not arm.supervised:
        return True
    none = MEASURES[measure]
    assert none is not None
    return bool(arm.numbers[measure].mean() >= arm.numbers[none].mean())


def _as_used(label: str, arm: Arm, measure: str) -> dict[str, np.ndarray]:
    """``MEASURES`` of an arm in the way in which it answers."""
    thinks = _thinks(label, arm, measure)
    names = {name: name if thinks else none for name, none in MEASURES.items()}
    return {name: arm.numbers[own] for name, own in names.items() if own and own in arm.numbers}


def _reference(
    arms: Mapping[str, Arm], used: Mapping[str, Mapping[str, np.ndarray]], measure: str
) -> str:
    """What the others are compared with: the best arm that is trained on answers alone, else the
    base, else the first."""
    supervised = [label for label, arm in arms.items() if label != BASE and arm.supervised]
    if not supervised:
        return BASE if BASE in arms else next(iter(arms))
    return max(supervised, key=lambda label: used[label][measure].mean())


def _bounds(name: str) -> tuple[float, float] | None:
    return BOUNDS.get(METRICS[f"eval_{name}"].unit)


def _interval(name: str, values: np.ndarray) -> Interval:
    return paired_interval(values, bounds=_bounds(name))


def _difference(
    name: str, ours: np.ndarray, theirs: np.ndarray, confidence: float = 0.95
) -> Interval:
    bounds = BOUNDS["points"] if _bounds(name) else None
    return paired_interval(ours, theirs, confidence, bounds)


def _differences(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, Interval]:
    return {name: _difference(name, ours[name], theirs[name]) for name in ours if name in theirs}


def _plain(interval: Interval) -> dict[str, float]:
    return {end: round(getattr(interval, end), 6) for end in ("mean", "low", "high")}


# -- In words --------------------------------------------------------------------------------------


def _verdict(
    arms: Mapping[str, Arm],
    used: Mapping[str, Mapping[str, np.ndarray]],
    reference: str,
    measure: str,
) -> dict[str, Any]:
    """``state``, ``best``, ``headline`` and ``notes``. An arm is better where both intervals, of
    sampled and of greedy answers, lie above 0. With m arms to choose from, their level is
    1 − 0.05/m (Bonferroni), so that the best of many does not win by chance."""
    rivals = [label for label in arms if label not in (reference, BASE)]
    rivals = [label for label in rivals if not arms[label].supervised] or rivals
    judged = [label for label in rivals if not arms[label].control] or rivals
    names = ("accuracy", "accuracy_greedy") if measure == "accuracy" else (measure,)
    if not judged:
        alone = f"Nothing is compared: {reference} is the only arm."
        return {"state": "unknown", "best": None, "headline": alone, "notes": []}
    level = 1 - 0.05 / len(judged)
    found = {
        label: [_difference(n, used[label][n], used[reference][n], level) for n in names]
        for label in judged
    }
    best = max(judged, key=lambda x: (all(d.low > 0 for d in found[x]), found[x][0].mean))
    above = [difference.low > 0 for difference in found[best]]
    state = "better" if all(above) else "partly" if any(above) else "even"
    if all(differences[0].high < 0 for differences in found.values()):
        state = "worse"
    alone = _WORDS.get(names[above.index(True)], "") if any(above) else ""
    begins = {
        "better": f"Better: {best} beats {reference}",
        "partly": f"Better with {alone} alone: {best} beats {reference}",
        "even": f"Not shown to be better than {reference}: the best is {best}",
        "worse": f"Worse than {reference}: the best is {best}",
    }
    told = ", ".join(_told(n, d) for n, d in zip(names, found[best], strict=True))
    size = f"{used[best][measure].shape[1]} questions, {_seeds(arms[best])}"
    notes = _notes(arms, used, best, reference, measure)
    if len(judged) > 1:
        notes.append(
            f"The first line's intervals are of level {100 * level:.1f} %, because the best of "
            f"{len(judged)} arms was chosen; those of the table are of 95 %."
        )
    headline = f"{begins[state]}, {told}; {size}."
    return {"state": state, "best": best, "headline": headline, "notes": notes}


def _told(name: str, difference: Interval) -> str:
    """``+4.1 points (+1.2 to +7.0) with sampled answers``."""
    metric = METRICS["eval_accuracy_gain" if _bounds(name) else "eval_uplift"]
    words = f"with {_WORDS[name]}" if name in _WORDS else "for a token of the reference"
    return f"{_text(difference, metric.text, metric.unit)} {words}"


def _text(interval: Interval | Mapping[str, float], text: Any, unit: str = "") -> str:
    """``+4.1 points (+1.2 to +7.0)``."""
    ends = interval if isinstance(interval, Mapping) else vars(interval)
    mean, low, high = (nought(text(ends[end])) for end in ("mean", "low", "high"))
    low, high = low.removesuffix(" %"), high.removesuffix(" %")
    return f"{mean}{f' {unit}' if unit else ''} ({low} to {high})"


def _seeds(arm: Arm) -> str:
    return f"{len(arm.seeds)} seed{'s' if len(arm.seeds) > 1 else ''}"


def _notes(
    arms: Mapping[str, Arm],
    used: Mapping[str, Mapping[str, np.ndarray]],
    best: str,
    reference: str,
    measure: str,
) -> list[str]:
    """What a reader has to know beside the first line, the most important first."""
    notes = []
    others = [x for x in arms if x not in (best, reference) and (x == BASE or arms[x].control)]
    for label in others:
        difference = _difference(measure, used[best][measure], used[label][measure])
        what = "the untrained model" if label == BASE else "a control"
        notes.append(f"Beside {label}, {what}, {best} has {_told(measure, difference)}.")
    for label, arm in arms.items():
        ill = [state for state in arm.guard if state != STATES[0]]
        if ill and label in (best, reference):
            worst = max(ill, key=STATES.index)
            notes.append(
                f"The guard said {worst} in {ill.count(worst)} of {_seeds(arm)} of {label}."
            )
    known = {label: arm for label, arm in arms.items() if label != BASE}
    for what, values in (
        ("optimiser steps", {label: max(arm.steps) for label, arm in known.items()}),
        ("questions a step", {label: arm.prompts for label, arm in known.items()}),
        ("seeds", {label: len(arm.seeds) for label, arm in arms.items()}),
    ):
        if len(set(values.values())) > 1:
            each = ", ".join(f"{label} {value}" for label, value in values.items())
            notes.append(f"The arms differ in {what}: {each}.")
    if len(arms[best].seeds) == 1:
        notes.append("One seed: the intervals are about these runs alone, not about training.")
    elif len(arms[best].seeds) < 5:
        notes.append(f"With {_seeds(arms[best])} the intervals are rough.")
    if used[best][measure].shape[1] < FEW:
        notes.append("So few questions make the intervals rough.")
    return notes


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and a row for each arm, as people read them; intervals are of 95 %."""
    against = f"less {result['reference']}"
    shown = [
        name for name in MEASURES if any(name in a["as_used"] for a in result["arms"].values())
    ]
    header = ["arm", "seeds", "answers"]
    for name in shown:
        header.append(METRICS[f"eval_{name}"].label)
        header += [against] if name in _WORDS or name == result["measure"] else []
    rows = []
    for label, arm in result["arms"].items():
        row = [label + (" (control)" if arm["control"] else ""), str(len(arm["seeds"]))]
        row.append(arm["answers"])
        for name in shown:
            measured, difference = arm["as_used"].get(name), arm["difference"].get(name)
            row.append(_cell(name, measured, whole=name == result["measure"]))
            if name in _WORDS or name == result["measure"]:
                gain = METRICS["eval_accuracy_gain" if _bounds(name) else "eval_uplift"]
                row.append("" if difference is None else _text(difference, gain.text))
        rows.append([*row, _guard(arm["guard"])])
    return [*header, "guard"], rows


def _cell(name: str, measured: Mapping[str, float] | None, whole: bool) -> str:
    if measured is None:
        return ""
    text = METRICS[f"eval_{name}"].text
    return _text(measured, text) if whole else nought(text(measured["mean"]))


def _guard(states: Sequence[str]) -> str:
    """``collapsed (1 of 3)``: the worst that was said, and in how many runs."""
    if not states:
        return ""
    worst = max(states, key=STATES.index)
    return worst if worst == STATES[0] else f"{worst} ({states.count(worst)} of {len(states)})"


def lines(result: Mapping[str, Any]) -> list[str]:
    """The sentences after the table: notes, and runs that failed."""
    failed = [f"{run} failed: {why}." for run, why in result["failed"].items()]
    return [*failed, *result["verdict"]["notes"]]


def markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a page of Markdown."""
    header, rows = table(result)
    cells = [header, ["---"] * len(header), *rows]
    drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    notes = [f"- {line}" for line in lines(result)]
    return "\n".join([result["verdict"]["headline"], "", *drawn, "", IN_BRACKETS, "", *notes, ""])
