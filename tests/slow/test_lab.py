"""Controls, measures, the runner and the tables of the lab."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lab import runner, trial
from lab.controls import watched
from lab.experiments import BEST, EXPERIMENTS, SETTINGS, Run
from lab.measure import digits_right, first_point, state_of
from lab.tables import best_changes, label_of, steps_to_learn, table, wilson
from scipy.stats import binomtest

from groups_of_scores import full_scores
from native_reasoning.config.errors import RunError
from native_reasoning.objective.credit import preset_objective

LAB = Path(__file__).parents[2] / "benchmarks" / "lab"

HARD = (1, 3)
STEP = [replace(full_scores(seed=seed), verdict=None) for seed in range(6)]


def signals(preset: str, control: str = ""):
    return watched(preset_objective(preset), HARD, control).of_groups(STEP)


# -- Controls ------------------------------------------------------------------------------------


def test_watching_changes_nothing_and_notes_the_hard_tokens():
    own = watched(preset_objective("nrt-ws"), HARD)
    for mine, plain in zip(
        own.of_groups(STEP), preset_objective("nrt-ws").of_groups(STEP), strict=True
    ):
        assert torch.equal(mine.advantages, plain.advantages)
        assert torch.equal(mine.answer_weights, plain.answer_weights)
    ((after, none),) = own.seen
    by_hand = [p.item() for s in STEP for p in s.answer[:, [1, 3]].exp().flatten()]
    assert after == pytest.approx(sum(by_hand) / len(by_hand))
    by_hand = [p.item() for s in STEP for p in s.baseline[[1, 3]].exp()]
    assert none == pytest.approx(sum(by_hand) / len(by_hand))


def test_shuffled_advantages_are_the_groups_own_on_other_traces():
    plain, dealt = signals("nrt-ws"), signals("nrt-ws", "shuffled")
    for a, b in zip(plain, dealt, strict=True):
        assert torch.equal(a.advantages.sort().values, b.advantages.sort().values)
        assert torch.equal(a.answer_weights, b.answer_weights)
    pairs = zip(plain, dealt, strict=True)
    assert any(not torch.equal(a.advantages, b.advantages) for a, b in pairs)


def test_the_oracle_is_the_standardised_probability_of_the_hard_tokens():
    for scores, made in zip(STEP, signals("nrt-ws", "oracle"), strict=True):
        reward = scores.answer[:, [1, 3]].double().exp().mean(-1)
        by_hand = (reward - reward.mean()) / reward.std()
        torch.testing.assert_close(made.advantages.double(), by_hand, rtol=1e-4, atol=1e-4)


def test_equal_rms_is_one_factor_on_unscaled_advantages():
    unscaled = replace(preset_objective("nrt-ws"), scale="none")
    plain = unscaled.of_groups(STEP)
    scaled = signals("nrt-ws")
    made = watched(unscaled, HARD, "equal_rms").of_groups(STEP)
    a, b, c = (torch.cat([s.advantages for s in given]) for given in (plain, scaled, made))
    factors = (c / a)[a.abs() > 1e-6]
    assert factors.max() - factors.min() < 1e-4 * factors.max()
    assert c.square().mean() == pytest.approx(b.square().mean().item(), rel=1e-5)


# -- Measures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [("it is 3 and 4", 1.0), ("3 5", 0.5), ("4 3", 0.0), ("", 0.0), ("3", 0.5), ("3 4 9", 1.0)],
)
def test_digits_are_compared_in_their_order(answer, right):
    assert digits_right(answer, "so 3 , 4 .") == right


@pytest.mark.parametrize(
    ("accuracy", "empty", "state"),
    [
        (0.95, [0.0, 0.0, 0.0], "learnt"),
        (0.1, [0.0, 1.0, 1.0], "collapsed"),
        (0.1, [1.0, 0.5, 0.5], "neither"),
        (0.1, None, "neither"),  # supervised: nothing is sampled
    ],
)
def test_states(accuracy, empty, state):
    curves = {"hard": [0.5], **({} if empty is None else {"empty": empty})}
    assert state_of({"curves": curves, "held_out": {"a": {"accuracy": accuracy}}}) == state


def test_first_point():
    assert first_point([0.1, 0.5], 0.9) is None
    assert first_point([0.95, 0.1, 0.95], 0.9, start=1) == 2
    assert steps_to_learn({"curves": {"hard": [0.1, 0.95, 0.1]}}) == 20


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 5), (15, 15), (9, 15)])
def test_wilson_is_scipys(k, n):
    interval = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-3)


# -- Runs ----------------------------------------------------------------------------------------


def result_of(run: Run) -> dict:
    names = ("accuracy_greedy", "accuracy_no_think", "exact", "uplift_hard", "useful")
    measured = {**dict.fromkeys(names, 0.5), "accuracy": 0.95, "trace_length": 5.0}
    curves = {"hard": [0.2, 0.95, 0.95], "empty": [0.95, 0.0, 0.0], "trace_entropy": [1.0, 0.5]}
    return {
        "run": json.loads(run.key),
        "key": run.key,
        "fingerprint": f"of {run.seed}",
        "cpu_seconds": 1.0,
        "seconds": 1.0,
        "sampled_tokens": 7000,
        "states": {"worst": "drifting", "last": "healthy"},
        "specificity": None,
        "curves": curves,
        "held_out": {run.family: measured},
    }


@pytest.fixture
def counted(monkeypatch):
    """A runner that trains nothing; the list of what it was asked to do."""
    done: list[str] = []

    def do(run, out, held_out):
        done.append(run.key)
        if len(done) == 4:
            raise KeyboardInterrupt
        return result_of(run)

    monkeypatch.setattr(runner, "do", do)
    monkeypatch.setattr(runner, "_pretrain", lambda base, out, scale: str(base))
    monkeypatch.setattr(runner, "fingerprint", lambda run, out, held_out: f"of {run.seed}")
    return done


def test_a_lab_that_was_stopped_goes_on_where_it_was(tmp_path, counted):
    scale = runner.Scale(held_out=1, pretraining=1, steps=2, runs=6)
    with pytest.raises(KeyboardInterrupt):
        runner.run_lab(["style"], tmp_path, scale, workers=1)
    with (tmp_path / "style.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # as a kill in the middle of a line leaves it
    found = runner.run_lab(["style"], tmp_path, scale, workers=1)["style"]
    wanted = [run.key for run in scale.runs_of("style")]
    assert counted == [*wanted[:4], *wanted[3:]]
    assert [result["key"] for result in found] == wanted
    assert runner.run_lab(["style"], tmp_path, scale, workers=1)["style"] == found
    assert len(counted) == 7


def test_a_result_of_other_settings_is_made_again(tmp_path, counted, monkeypatch):
    scale = runner.Scale(held_out=1, pretraining=1, steps=2, runs=2)
    runner.run_lab(["style"], tmp_path, scale, workers=1)
    monkeypatch.setattr(runner, "fingerprint", lambda run, out, held_out: "of another base")
    counted.clear()
    runner.run_lab(["style"], tmp_path, scale, workers=1)
    assert len(counted) == 2


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, counted, monkeypatch):
    def do(run, out, held_out):
        if run.base == 0 and run.preset == "nrt-am":
            raise OSError("no room")
        return result_of(run)

    monkeypatch.setattr(runner, "do", do)
    said: list[str] = []
    scale = runner.Scale(held_out=1, pretraining=1, steps=2, runs=4)
    with pytest.raises(RunError, match="1 runs failed"):
        runner.run_lab(["style"], tmp_path, scale, workers=1, say=said.append)
    assert len(runner.read_results(tmp_path, "style")) == 3
    assert any("no room" in line for line in said)


@pytest.mark.parametrize("path", sorted(LAB.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_committed_lines_still_count(path):
    """A preset that is changed would have the whole lab done again."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines[:: max(len(lines) // 5, 1)]:
        changes = tuple(map(tuple, line["run"]["changes"]))
        run = Run(**{**line["run"], "changes": changes})
        assert (run.key, trial.fingerprint(run, LAB, 1000)) == (line["key"], line["fingerprint"])


def test_the_fingerprint_knows_base_settings_and_questions(tmp_path):
    run = Run("style_shift", "nrt-ws", 0, 0, steps=2)
    same = trial.fingerprint(run, tmp_path, 10)
    assert trial.fingerprint(run, tmp_path, 10) == same
    others = [
        trial.fingerprint(replace(run, preset="nrt-am"), tmp_path, 10),
        trial.fingerprint(replace(run, seed=1), tmp_path, 10),
        trial.fingerprint(run, tmp_path, 11),
    ]
    folder = tmp_path / "bases" / "demo-1"
    folder.mkdir(parents=True)
    for weights in (b"one", b"two"):
        (folder / "model.safetensors").write_bytes(weights)
        trial._sha256.cache_clear()
        others.append(trial.fingerprint(replace(run, base=1), tmp_path, 10))
    assert len({same, *others}) == 6


def test_a_signal_leaves_no_result_of_half_a_run(tmp_path, monkeypatch):
    def train(self, *args, **kwargs):
        self.checkpoints.signals.received = (
            signal.SIGTERM
        )  # as the callback leaves it, the training stopped

    monkeypatch.setattr(trial.NRTTrainer, "train", train)
    with pytest.raises(KeyboardInterrupt):
        trial.do(Run("style_shift", "nrt-ws", 0, 0, steps=2), tmp_path, 10)


def test_a_training_row_is_never_seen_twice_and_noise_changes_digits_alone():
    run = Run("short_answer", "nrt-ws", 0, 0, steps=20, noise=0.5)
    family = trial.EXPERIMENTAL["short_answer"]
    plain = trial._training_rows(replace(run, noise=0.0), [family], 16)
    noisy = trial._training_rows(run, [family], 16)
    assert len({row["question"] for row in plain}) == 320
    assert [row["question"] for row in noisy] == [row["question"] for row in plain]
    other = [a["answer"] != b["answer"] for a, b in zip(plain, noisy, strict=True)]
    assert 0.35 < sum(other) / 320 < 0.55  # half of them drawn, a tenth of these as it was
    assert all(row["answer"].startswith("the last digit of their sum is ") for row in noisy)


def test_tables_name_what_was_changed():
    changed = SETTINGS[1]
    run = Run("style_shift", "nrt-ws", 0, 0, 10, changes=changed.changes)
    assert label_of(json.loads(run.key)) == ("style_shift", "nrt-ws", changed.name, "10")
    results = [result_of(replace(run, seed=seed)) for seed in range(3)]
    said, _, heads, _, row = table("settings", results, full=True).splitlines()[-5:]
    assert said == (
        f"All rows: family style_shift, preset `nrt-ws`, changed {changed.name}, steps 10, runs 3."
    )
    assert row.startswith("| 3 (3; 44–100%) | 20 (3 runs) | 95 (95–95) | 3, 3 back after 10 |")
    assert row.endswith("| 3 drifting | 7,000 | 1 |")
    assert "specificity" not in heads  # no run has one
    text = table("settings", [*results, result_of(Run("style_shift", "sft", 0, 0, 10))])
    assert text.startswith(EXPERIMENTS["settings"].question)
    assert "steps 10." in text
    assert f"| `nrt-ws` | {changed.name} | 3 | 3 (3; 44–100%) |" in text
    assert "guard" not in text


def test_the_best_settings_are_those_of_the_committed_results():
    results = runner.read_results(LAB, "rates")
    assert best_changes(results) == BEST
    assert len(results) == len([*EXPERIMENTS["rates"].runs()])


def test_the_best_settings_have_the_highest_mean():
    tried = (("learning_rate", 1.0),), (("learning_rate", 2.0),)
    results = [
        result_of(Run("style_shift", "nrt-ws", 0, seed, 10, changes=changes))
        for changes in tried
        for seed in (0, 1)
    ]
    for result, accuracy in zip(results, (0.9, 0.1, 0.6, 0.6), strict=True):
        result["held_out"]["style_shift"]["accuracy"] = accuracy
    assert best_changes(results) == {"nrt-ws": tried[1]}


def test_the_smoke_lab_trains_measures_and_tells(tmp_path):
    command = [sys.executable, str(LAB / "run.py"), "unanswerable", "--smoke", "--workers", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "## unanswerable" in done.stdout
    (result,) = runner.read_results(tmp_path / "smoke", "unanswerable")
    assert len(result["curves"]["hard"]) == 1
    assert all(0 <= s["accuracy"] <= 1 for s in result["held_out"].values())
    assert result["run"]["preset"] in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["smoke"]  # nothing of it is a result
