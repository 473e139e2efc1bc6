"""Every method trains: what is sampled, what gets a gradient, and that it resumes bit for bit."""

import math

import pytest
import torch
from safetensors.torch import load_file

from lab_run import lab_trainer
from native_reasoning.config.errors import RunError
from native_reasoning.config.papers import PRESETS
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.scoring.judges import EMA
from native_reasoning.training import judging
from native_reasoning.training.checkpoints import KEPT
from watchers import Gradients, Killed, KillIn

RIVALS = [name for name, preset in PRESETS.items() if not name.startswith("nrt-")]


def gradients(folder, **settings) -> list[torch.Tensor]:
    keep = Gradients()
    lab_trainer(folder, [keep], **settings).train()
    return keep.seen


@pytest.mark.parametrize("preset", RIVALS)
def test_every_method_trains(preset, tmp_path):
    settings = PRESETS[preset].settings
    seen = gradients(tmp_path / "run", preset=preset)
    assert len(seen) == 2
    assert all(g.isfinite().all() for g in seen)
    assert all(g.norm() > 0 for g in seen)
    for m in read_metrics(tmp_path / "run"):
        parts = ("trace", "answer", "format", "kl")
        total = sum(m[f"loss_{part}"] for part in parts)
        assert m["loss"] == pytest.approx(total, rel=1e-4, abs=1e-6)
        assert ("sampled_correct" in m) == settings.samples_answers
        assert (m["loss_answer"] == 0) == (settings.answer_weight == "none")
    # the first policy is the policy itself in the first step, and no longer in the second
    first, second = read_metrics(tmp_path / "run")
    assert first["loss_kl"] == pytest.approx(0, abs=1e-6)
    assert (second["loss_kl"] > 1e-8) == bool(settings.beta)


def test_sampled_answers_are_recorded_and_judged(tmp_path):
    lab_trainer(tmp_path / "run", preset="rlvr", max_steps=1).train()
    rows = read_traces(tmp_path / "run").to_pylist()
    (metrics,) = read_metrics(tmp_path / "run")
    assert all(bool(r["sampled_answer"]) == r["closed"] for r in rows)
    right = [r["sampled_answer"].strip() == r["answer"] for r in rows]
    assert 0 < sum(right) < len(rows)
    assert [r["reward"] for r in rows] == [float(x) for x in right]
    assert metrics["sampled_correct"] == pytest.approx(sum(right) / len(rows))


@pytest.mark.parametrize("preset", ["rlpr", "nover", "jepo", "latro", "dro"])
def test_micro_batches_change_no_gradient(preset, tmp_path):
    """Sampled answers, KL, token mean and copies: the step is the same however it is cut. In
    float64, where rounding hides nothing: in float32 it depends on the processor (dro: 1.4e-5)."""
    settings = {"preset": preset, "model_init_kwargs": {"dtype": "float64"}}
    whole = gradients(tmp_path / "a", **settings)
    parts = gradients(
        tmp_path / "b",
        **settings,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
        max_tokens_per_forward=200,
    )
    assert (whole[0] - parts[0]).norm() <= 1e-12 * whole[0].norm()
    sampled = [
        sorted(
            (r["row_id"], r["k"], r["trace"], r["sampled_answer"]) for r in found if r["step"] == 1
        )
        for found in (read_traces(tmp_path / run).to_pylist() for run in "ab")
    ]
    assert sampled[0] == sampled[1]


@pytest.mark.parametrize("preset", ["rlpr", "nover", "jepo", "latro", "dro", "rlvr", "verifree"])
def test_scores_taken_beforehand_give_the_gradient_of_the_fused_pass(preset, tmp_path):
    """In float64, in which only the norms round to float32: standard deviations enlarge what other
    shapes round differently."""
    exact = {"preset": preset, "max_steps": 1, "model_init_kwargs": {"dtype": "float64"}}
    fused = gradients(tmp_path / "a", **exact)
    for name, way in {
        "several": {"num_iterations": 2},
        "parts of one trace": {"max_tokens_per_forward": 1},
        "parts of some traces": {"max_tokens_per_forward": 80},
        "parts of two groups": {"max_tokens_per_forward": 200},
    }.items():
        apart = gradients(tmp_path / name, **exact, **way)
        assert (fused[0] - apart[0]).norm() <= 2e-8 * fused[0].norm(), name


RESUMED = {
    "a lagging copy, KL, sampled answers": {"preset": "nover", "ema_steps": 2},
    "a first policy and a filter": {"preset": "rlpr"},
    "an open window": {"preset": "rlpr", "num_iterations": 2, "beta": 0.1},
    "KL in the reward": {"preset": "latro"},
    # 12 rows at 5 prompts a step, two mini-batches, twice each: fillers inside an open window
    "fillers in an open window": {
        "preset": "nover",
        "per_device_train_batch_size": 5,
        "steps_per_generation": 2,
        "num_iterations": 2,
    },
    "no reward in an open window": {
        "preset": "sft-think",
        "per_device_train_batch_size": 5,
        "num_iterations": 2,
    },
}


@pytest.mark.parametrize("step", [3, 5])
@pytest.mark.parametrize("name", RESUMED)
def test_killed_and_resumed_run_is_bit_identical(name, step, tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "FIRST", 1)
    monkeypatch.setattr(judging, "LAST", 2)
    settings = {**RESUMED[name], "max_steps": 6, "save_strategy": "steps", "save_steps": 1}
    settings["save_total_limit"] = None
    lab_trainer(tmp_path / "whole", **settings).train()
    with pytest.raises(Killed):
        lab_trainer(tmp_path / "run", [KillIn(step)], **settings).train()
    lab_trainer(tmp_path / "run", **settings).train(resume_from_checkpoint=True)
    one, two = tmp_path / "whole" / "checkpoint-6", tmp_path / "run" / "checkpoint-6"
    files = ["model.safetensors"] + [EMA] * (settings["preset"] == "nover")
    for file in files:
        a, b = load_file(one / file), load_file(two / file)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    if settings["preset"] == "rlpr":
        assert (one / KEPT).read_text() == (two / KEPT).read_text()
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "run")
    assert read_traces(tmp_path / "whole").equals(read_traces(tmp_path / "run"))


def test_the_filter_leaves_groups_out_once_it_acts(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "FIRST", 1)
    monkeypatch.setattr(judging, "LAST", 2)
    seen = gradients(tmp_path / "run", preset="rlpr", max_steps=4, filter_coef=1.2)
    kept = [m["kept_groups"] for m in read_metrics(tmp_path / "run")]
    assert kept[:2] == [1.0, 1.0]
    assert min(kept[2:]) < 1
    assert all(math.isfinite(g.norm()) for g in seen)


def test_resuming_with_an_objective_that_needs_more_than_was_kept(tmp_path):
    """A lagging copy cannot be made up; a filter begins its mean anew."""
    settings = {"save_strategy": "steps", "save_steps": 1}
    lab_trainer(tmp_path / "run", preset="jepo", **settings).train()
    trainer = lab_trainer(tmp_path / "run", preset="nover", max_steps=3, **settings)
    with pytest.raises(RunError, match=f"has no {EMA}"):
        trainer.train(resume_from_checkpoint=True)
    trainer = lab_trainer(tmp_path / "run", preset="rlpr", max_steps=3, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.objective.filter.rollouts == 1


def test_underflow_of_whole_answers_is_said_once(tmp_path, capsys):
    rows = [{"question": "add 1 2 3 4 5", "answer": "dear pal " * 15 + str(i)} for i in range(6)]
    lab_trainer(tmp_path / "run", preset="verifree", rows=rows, max_answer_length=40).train()
    told = [line for line in capsys.readouterr().err.splitlines() if "underflow" in line]
    assert len(told) == 1
    assert "100% of this step's rewards" in told[0]


def test_copies_compute_in_the_trainers_arithmetic(tmp_path):
    """In bfloat16 too the first policy is the policy itself in the first step."""
    lab_trainer(tmp_path / "run", preset="nover", bf16=True, max_steps=1, beta=1.0).train()
    lab_trainer(tmp_path / "exact", preset="nover", max_steps=1, beta=1.0).train()
    (rounded,), (exact,) = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "exact")
    assert rounded["loss_kl"] == pytest.approx(0, abs=1e-6)
    assert rounded["answer_logp"] != exact["answer_logp"]


def test_a_step_without_a_trace_in_the_right_format_is_said_once(tmp_path, capsys):
    rows = [{"question": "add 1 2 3 4 5", "answer": "the last digit of their sum is 5 ."}]
    trainer = lab_trainer(tmp_path / "run", preset="rlpr", rows=rows, max_steps=2)
    trainer.recorder.records.writes = True
    for closed in (0.0, 0.0, 1.0):
        trainer.recorder.meter.add("sampled_complete", closed, 4)
        trainer.recorder.means()
    told = [x for x in capsys.readouterr().err.splitlines() if "right format" in x]
    assert len(told) == 1
    assert "--objective.format-loss-coef 0.3" in told[0]
    lenient = lab_trainer(tmp_path / "other", preset="nrt-ws", rows=rows)
    lenient.recorder.records.writes = True
    lenient.recorder.meter.add("closed", 0.0, 4)
    lenient.recorder.means()
    assert "right format" not in capsys.readouterr().err
