"""Arms beside each other: from what runs left in their folders to the first line."""

import json

import numpy as np
import pytest

from native_reasoning.config.errors import RunError
from native_reasoning.config.papers import PRESETS
from native_reasoning.evaluation.grading import paired_interval
from native_reasoning.records.folder import RunFolder
from native_reasoning.report import write_report
from native_reasoning.report.comparison import (
    Arm,
    _verdict,
    compare,
    lines,
    load_arm,
    markdown,
    table,
)
from report_runs import draw_few

QUESTIONS = 100


def made(folder, preset, seed, right, *, none=0.1, greedy=None, logp=-1.0, **changes):
    """A run whose questions are answered right after a trace where ``right`` says so."""
    run = RunFolder.create(folder / f"{changes.pop('name', preset)}-{seed}", resume=False)
    settings = {"preset": preset, "per_device_train_batch_size": 4}
    settings |= {"gradient_accumulation_steps": 2}
    run.write_config(
        {**settings, "resolved_objective": vars(PRESETS[preset].settings)}, seed=seed, data_hash=0
    )
    steps = changes.pop("steps", 20)
    for step in range(1, steps + 1):
        state = changes.get("guard", 0) if step > 5 else 0
        run.append_metrics(step, {"loss": 0.0, "collapse_state": state})
    rows = [
        {
            "row_id": i,
            "asked": changes.get("asked", f"{i:016x}"),
            "accuracy": float(value),
            "accuracy_greedy": float(value if greedy is None else greedy[i]),
            "accuracy_no_think": float(i < none * QUESTIONS),
            "accuracy_no_think_greedy": float(i < none * QUESTIONS),
            "answer_logp": logp + 0.001 * i,
            "answer_logp_no_think": -2.0 + 0.001 * i,
            "trace_length": 7.0,
        }
        for i, value in enumerate(right)
    ]
    run.append_questions(steps, [{**row, "accuracy": 0.0} for row in rows])  # an earlier one
    run.append_questions(steps, rows)
    return run.path


def answers(share, seed=0):
    """Questions are answered alike in all arms, but for those that a better arm adds."""
    order = np.random.default_rng(1).permutation(QUESTIONS) / QUESTIONS
    flips = np.random.default_rng(seed).random(QUESTIONS) < 0.05
    return (order < share) ^ flips


def arms(folder, seeds=(0, 1, 2), **shares):
    """The folders of each arm, whose runs answer this share right."""
    found = {}
    for name, share in shares.items():
        label = name.replace("_", "-")
        preset = "sft" if label == "base" else label
        found[label] = []
        for seed in seeds:
            if preset == "sft" and label != "base":
                path = made(folder, preset, seed, answers(0, seed), none=share)
            else:
                path = made(folder, preset, seed, answers(share, seed), name=label)
            found[label].append(path)
    return found


def test_an_arm_that_is_better_is_told_in_the_first_line(tmp_path):
    folders = arms(tmp_path, base=0.2, sft=0.3, nrt_ws=0.6, nrt_gm=0.4, permuted=0.25)
    result = compare(folders)
    assert result["verdict"]["state"] == "better"
    assert result["verdict"]["best"] == "nrt-ws"
    assert result["reference"] == "sft"
    headline = result["verdict"]["headline"]
    assert headline.startswith("Better: nrt-ws beats sft, +")
    assert headline.endswith("100 questions, 3 seeds.")
    difference = result["arms"]["nrt-ws"]["difference"]["accuracy"]
    ours = np.array([answers(0.6, seed) for seed in range(3)], dtype=float)
    theirs = np.tile(np.arange(QUESTIONS) < 30, (3, 1)).astype(float)  # after none: sft's way
    by_hand = paired_interval(ours, theirs)
    for end in ("mean", "low", "high"):
        assert difference[end] == pytest.approx(getattr(by_hand, end), abs=1e-6)
    assert result["arms"]["sft"]["answers"] == "after none"
    assert result["arms"]["base"]["answers"] == "after a trace"
    assert result["arms"]["permuted"]["control"]
    notes = " ".join(lines(result))
    assert "Beside permuted, a control, nrt-ws has +" in notes
    assert "Beside base, the untrained model, nrt-ws has +" in notes
    assert "level 97.5 %" in notes  # two arms to choose from


@pytest.mark.parametrize(
    ("share", "state", "begins"),
    [
        (0.3, "even", "Not shown to be better than sft: the best is nrt-ws, "),
        (0.1, "worse", "Worse than sft: the best is nrt-ws, −"),
    ],
)
def test_an_arm_that_is_not_better_is_told_so(tmp_path, share, state, begins):
    result = compare(arms(tmp_path, base=0.2, sft=0.32, nrt_ws=share))
    assert result["verdict"]["state"] == state
    assert result["verdict"]["headline"].startswith(begins)


def test_both_ways_of_answering_count(tmp_path):
    folders = arms(tmp_path, seeds=(0,), base=0.2, sft=0.3)
    folders["nrt-ws"] = [
        made(tmp_path, "nrt-ws", 0, answers(0.7), greedy=np.arange(QUESTIONS) < 30)
    ]
    result = compare(folders)
    assert result["verdict"]["state"] == "partly"
    begins = "Better with sampled answers alone: nrt-ws beats sft"
    assert result["verdict"]["headline"].startswith(begins)
    assert any("One seed" in note for note in lines(result))


def test_controls_are_never_the_best_and_sft_is_taken_at_its_best(tmp_path):
    folders = arms(tmp_path, base=0.2, sft=0.3, nrt_ws=0.5, permuted=0.9)
    folders["sft:learning_rate=1e-3"] = [
        made(tmp_path, "sft", seed, answers(0), none=0.45, name="other") for seed in range(3)
    ]
    result = compare(folders)
    assert result["verdict"]["best"] == "nrt-ws"
    assert result["reference"] == "sft:learning_rate=1e-3"
    assert any("permuted, a control, nrt-ws has −" in note for note in lines(result))


def test_where_no_answer_is_right_the_reference_answer_decides(tmp_path):
    zero = np.zeros(QUESTIONS)
    folders = {
        "sft": [made(tmp_path, "sft", seed, zero, none=0, logp=-2.5) for seed in (0, 1)],
        "nrt-ws": [made(tmp_path, "nrt-ws", seed, zero, none=0, logp=-1.5) for seed in (0, 1)],
    }
    result = compare(folders)
    assert result["measure"] == "answer_logp"
    assert result["verdict"]["state"] == "better"
    assert "+0.500 nats per token" in result["verdict"]["headline"]


def test_what_makes_a_comparison_unfair_is_told(tmp_path):
    folders = arms(tmp_path, base=0.2, sft=0.3)
    folders["nrt-ws"] = [
        made(tmp_path, "nrt-ws", seed, answers(0.6), steps=30, guard=2) for seed in (0, 1)
    ]
    result = compare(folders, {"nrt-ws-2": "exit code 1"})
    told = lines(result)
    assert told[0] == "nrt-ws-2 failed: exit code 1."
    assert "The guard said collapsed in 2 of 2 seeds of nrt-ws." in told
    assert any("differ in optimiser steps: sft 20, nrt-ws 30" in line for line in told)
    assert any("differ in seeds" in line for line in told)
    header, rows = table(result)
    assert [len(row) for row in rows] == [len(header)] * 3
    assert rows[-1][-1] == "collapsed (2 of 2)"


def test_other_questions_are_not_compared(tmp_path):
    folders = arms(tmp_path, base=0.2, sft=0.3)
    folders["nrt-ws"] = [made(tmp_path, "nrt-ws", 0, answers(0.6), asked="another")]
    with pytest.raises(RunError, match="other held-out questions"):
        compare(folders)
    with pytest.raises(RunError, match="other held-out questions"):
        load_arm([*folders["sft"], *folders["nrt-ws"]])
    with pytest.raises(RunError, match="no run of the comparison"):
        compare({"sft": []})


def test_the_page_and_the_markdown_begin_with_it(tmp_path, monkeypatch):
    draw_few(monkeypatch)
    folders = arms(tmp_path, seeds=(0,), base=0.2, sft=0.3, nrt_ws=0.6)
    result = json.loads(json.dumps(compare(folders)))  # what compare.json gives back
    headline = result["verdict"]["headline"]
    text = markdown(result)
    assert text.startswith(headline + "\n\n| arm | seeds | answers |")
    paths = [path for of in folders.values() for path in of]
    write_report(paths, tmp_path / "report.html", comparison=result)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert page.index("Which arm is better?") < page.index("Did thinking help?")
    assert headline.partition(",")[0] in page


def test_of_arms_that_are_alike_hardly_ever_is_one_called_better():
    """Five arms as good as sft, 100 worlds, three seeds whose levels differ: at most five are
    called better, where intervals of 95 % for each arm alone would call many more."""
    random = np.random.default_rng(0)
    called = alone = 0
    for _ in range(100):
        level = random.normal(size=80)
        arms, used = {}, {}
        for label in ("sft", "nrt-ws", "nrt-gm", "nrt-am", "nrt-p", "verifree"):
            logits = level + random.normal(0, 0.3, (3, 1))
            chance = 1 / (1 + np.exp(-logits))
            numbers = {
                name: (random.random((3, 80)) < chance).astype(float)
                for name in ("accuracy", "accuracy_greedy")
            }
            settings = vars(PRESETS[label].settings)
            arms[label] = Arm((), (0, 1, 2), (1, 1, 1), 1, settings, (), (), numbers)
            used[label] = numbers
        called += _verdict(arms, used, "sft", "accuracy")["state"] == "better"
        intervals = (
            paired_interval(used[label]["accuracy"], used["sft"]["accuracy"])
            for label in arms
            if label != "sft"
        )
        alone += any(interval.low > 0 for interval in intervals)
    assert called <= 5
    assert alone > called
