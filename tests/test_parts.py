"""Micro-batches in parts, and memory that runs out, by injection: the error says what to set."""

import pytest
import torch
from safetensors.torch import load_file

from lab_run import lab_trainer
from native_reasoning.config.errors import RunError
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.rollout import hf
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training.forwards import fitting
from watchers import Gradients

#: three micro-batches of one prompt, so that the one that fails has others before it
THREE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}


def small(monkeypatch, rows, where="forward"):
    """A device on which a forward of more than ``rows`` traces does not fit, or its backward."""
    plain = Scorer.__call__

    def score(self, model, groups, traces, *rest):
        found = plain(self, model, groups, traces, *rest)
        if sum(len(t.ids) for t in traces) > rows:
            if where == "forward":
                _no_memory()
            if found[0].answer.requires_grad:
                found[0].answer.register_hook(_no_memory)
        return found

    monkeypatch.setattr(Scorer, "__call__", score)


def _no_memory(gradient=None):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def run(folder, resume=None, **settings):
    keep = Gradients()
    trainer = lab_trainer(folder, [keep], **{**THREE, **settings})
    trainer.train(resume_from_checkpoint=resume)
    return keep.seen


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr", "nover"])
def test_the_step_is_the_same_in_parts(preset, tmp_path):
    exact = {"preset": preset, "max_steps": 2, "model_init_kwargs": {"dtype": "float64"}}
    whole = run(tmp_path / "whole", **exact)
    parts = run(tmp_path / "parts", **exact, rows_per_forward=1)
    assert (whole[0] - parts[0]).norm() <= 2e-8 * whole[0].norm()
    assert (whole[1] - parts[1]).norm() <= 1e-5 * whole[1].norm()
    for one, other in zip(
        *map(read_metrics, (tmp_path / "whole", tmp_path / "parts")), strict=True
    ):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    before, after = (read_traces(tmp_path / name).to_pylist() for name in ("whole", "parts"))
    assert [r["trace"] for r in before] == [r["trace"] for r in after]


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr", "nover"])
def test_scores_beforehand_are_the_same_in_parts(preset, tmp_path):
    exact = {"preset": preset, "max_steps": 1, "model_init_kwargs": {"dtype": "float64"}}
    whole = run(tmp_path / "whole", **exact, num_iterations=2)
    parts = run(tmp_path / "parts", **exact, num_iterations=2, rows_per_forward=3)
    assert (whole[0] - parts[0]).norm() <= 2e-8 * whole[0].norm()


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}], ids=str)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_forward_that_does_not_fit_says_what_to_set(where, settings, tmp_path, monkeypatch):
    small(monkeypatch, rows=2, where=where)
    with pytest.raises(RunError, match="4 traces in a forward: CUDA out of memory") as caught:
        run(tmp_path / "run", max_steps=1, **settings)
    assert caught.value.fix.startswith("--rows-per-forward 2, ")
    assert "--resume goes on" in caught.value.fix
    small(monkeypatch, rows=0, where=where)
    with pytest.raises(RunError, match="1 traces in a forward") as caught:
        run(tmp_path / "one", max_steps=1, rows_per_forward=1, **settings)
    assert caught.value.fix.startswith("--activation-checkpointing")


def test_the_run_goes_on_with_the_number_that_was_said(tmp_path, monkeypatch):
    saved = {"save_strategy": "steps", "save_steps": 1}
    whole = run(tmp_path / "whole", max_steps=3, **saved)
    run(tmp_path / "run", max_steps=2, **saved)
    small(monkeypatch, rows=2)
    with pytest.raises(RunError, match="out of memory"):
        run(tmp_path / "run", True, max_steps=3, **saved)
    (last,) = run(tmp_path / "run", True, max_steps=3, rows_per_forward=2, **saved)
    assert (last - whole[2]).norm() <= 1e-4 * whole[2].norm()
    one, two = (
        load_file(tmp_path / name / "checkpoint-3" / "model.safetensors")
        for name in ("whole", "run")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr"])  # the latter samples answers too
def test_sampling_that_does_not_fit_says_what_to_set(preset, tmp_path, monkeypatch):
    class Small(hf.SharedDecoder):
        def start(self, prompts, *about):
            return super().start(prompts, *about) if len(prompts) < 2 else _no_memory()

    monkeypatch.setattr(hf, "decoder_of", lambda model, share: Small(model))
    with pytest.raises(RunError, match="3 prompts of 4 traces sampled at once") as caught:
        run(tmp_path / "run", preset=preset, max_steps=1)
    assert caught.value.fix.startswith("--rollout-batch-size 1, ")
    run(tmp_path / "small", preset=preset, max_steps=1, rollout_batch_size=1)
    monkeypatch.setattr(hf, "decoder_of", lambda *args: _no_memory())
    with pytest.raises(RunError, match="1 prompts of 4 traces") as caught:
        run(tmp_path / "none", preset=preset, max_steps=1, rollout_batch_size=1)
    assert caught.value.fix.startswith("a smaller --max-trace-length")


def test_the_allocator_of_a_cpu_is_understood_and_other_errors_pass():
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    with pytest.raises(RunError, match="can't allocate"), fitting("it", "less"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), fitting("it", "less"):
        raise RuntimeError("shapes do not fit")
