"""Out of memory, by injection: the step begins again with the same traces and half the rows."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lab_run import lab_trainer
from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training import collector as maker
from native_reasoning.training.limits import Limits, out_of_memory
from watchers import Gradients, Killed, KillIn

#: three micro-batches of one prompt, so that the one that fails has others before it
THREE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}


def small(monkeypatch, rows):
    """A device on which a forward with gradients of more than ``rows`` traces does not fit, nor
    does a backward: it fails when half of the gradients are there."""
    plain, failed = Scorer.__call__, []

    def score(self, model, groups, traces, *rest):
        found = plain(self, model, groups, traces, *rest)
        count = sum(len(t.ids) for t in traces)
        if torch.is_grad_enabled() and count > rows:
            failed.append(count)
            if len(failed) % 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            found[0].answer.register_hook(_no_memory)
        return found

    monkeypatch.setattr(Scorer, "__call__", score)
    return failed


def _no_memory(gradient):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def run(folder, callbacks=(), **settings):
    keep = Gradients()
    trainer = lab_trainer(folder, [keep, *callbacks], **{**THREE, **settings})
    trainer.train()
    return keep.seen, trainer


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr", "nover"])
def test_the_step_is_the_same_with_fewer_rows_and_says_so_once(
    preset, tmp_path, monkeypatch, capsys
):
    exact = {"preset": preset, "max_steps": 2, "model_init_kwargs": {"dtype": "float64"}}
    whole, _ = run(tmp_path / "whole", **exact)
    failed = small(monkeypatch, rows=1)
    parts, trainer = run(tmp_path / "parts", **exact)
    assert failed[:2] == [4, 2]  # 4 -> 2 -> 1, and never again
    assert len(failed) == 2
    assert trainer.limits.rows == 1
    assert capsys.readouterr().err.count("out of memory") == 2
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


def test_the_last_micro_batch_may_fail_alone(tmp_path, monkeypatch):
    """The gradients of those before it are dropped with it: they are counted once."""
    exact = {"max_steps": 1, "model_init_kwargs": {"dtype": "float64"}, "diagnostics_steps": 0}
    whole, _ = run(tmp_path / "whole", **exact)
    plain, calls = Scorer.__call__, []

    def score(self, *args):
        calls.append(torch.is_grad_enabled())
        if calls == [True] * 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, *args)

    monkeypatch.setattr(Scorer, "__call__", score)
    parts, trainer = run(tmp_path / "parts", **exact)
    assert trainer.limits.rows == 2
    assert calls == [True] * 3 + [False] * 6 + [True] * 6  # scored and trained two at a time
    assert (whole[0] - parts[0]).norm() <= 2e-8 * whole[0].norm()
    assert read_metrics(tmp_path / "parts")[0]["loss_trace"] == pytest.approx(
        read_metrics(tmp_path / "whole")[0]["loss_trace"], rel=1e-6
    )


def test_one_row_that_does_not_fit_ends_the_run_with_what_to_do(tmp_path, monkeypatch):
    small(monkeypatch, rows=0)
    with pytest.raises(RunError, match="1 traces in a forward") as caught:
        run(tmp_path / "run", max_steps=1)
    assert "--max-trace-length" in caught.value.fix


def test_a_resumed_run_goes_on_with_the_size_that_fits(tmp_path, monkeypatch):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    failed = small(monkeypatch, rows=2)
    run(tmp_path / "whole", **settings)
    with pytest.raises(Killed):
        run(tmp_path / "run", [KillIn(2)], **settings)
    count = len(failed)
    lab_trainer(tmp_path / "run", **{**THREE, **settings}).train(resume_from_checkpoint=True)
    assert len(failed) == count
    one, two = (
        load_file(tmp_path / name / "checkpoint-3" / "model.safetensors")
        for name in ("whole", "run")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "run")


def test_what_was_asked_for_on_resuming_counts_where_it_is_less(tmp_path):
    def limits(rows, prompts):
        args = NRTConfig(str(tmp_path / "run"), use_cpu=True, rows_per_forward=rows)
        return Limits(args, SimpleNamespace(batch_size=prompts))

    state = limits(4, None).state()
    for given, expected in ((None, 4), (2, 2), (8, 4)):
        made = limits(given, 7)
        made.restore(state)
        assert (made.rows, made.engine.batch_size) == (expected, 7)


def test_the_allocator_of_a_cpu_is_understood_and_other_errors_pass():
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    assert out_of_memory(RuntimeError(said)) == said
    with pytest.raises(RuntimeError, match="shapes"):
        out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr", "nover"])
def test_scoring_beforehand_goes_on_with_fewer_rows_too(preset, tmp_path, monkeypatch):
    exact = {"preset": preset, "max_steps": 1, "model_init_kwargs": {"dtype": "float64"}}
    whole, _ = run(tmp_path / "whole", **exact, num_iterations=2)
    plain = Scorer.__call__

    def score(self, model, groups, traces, *rest):
        if sum(len(t.ids) for t in traces) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, model, groups, traces, *rest)

    monkeypatch.setattr(Scorer, "__call__", score)
    monkeypatch.setattr(maker, "_FINEST", 0)  # no scores off the caches
    parts, trainer = run(tmp_path / "parts", **exact, num_iterations=2)
    assert trainer.limits.rows == 2
    assert (whole[0] - parts[0]).norm() <= 2e-8 * whole[0].norm()


def test_a_second_try_of_sampling_takes_all_that_is_sampled_and_rewards_once(
    tmp_path, monkeypatch, capsys
):
    plain, sizes, calls = HFEngine._decoder, [], []

    def decoder(self, prompts, copies, head):
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, prompts, copies, head)

    def reward(completions, **kwargs):
        calls.append(len(completions))
        return [0.0] * len(completions)

    monkeypatch.setattr(HFEngine, "_decoder", decoder)
    settings = {"per_device_train_batch_size": 2, "steps_per_generation": 4, "funcs": [reward]}
    lab_trainer(tmp_path / "run", max_steps=1, **settings).train()
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert calls == [8 * 4]
    assert "8 prompts sampled at once" in capsys.readouterr().err


def test_sampling_goes_on_with_fewer_prompts_at_once(tmp_path, monkeypatch, capsys):
    whole, _ = run(tmp_path / "whole", max_steps=1)
    plain = HFEngine._decoder

    def decoder(self, prompts, copies, head):
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, prompts, copies, head)

    monkeypatch.setattr(HFEngine, "_decoder", decoder)
    parts, trainer = run(tmp_path / "parts", max_steps=1)
    assert trainer.engine.batch_size == 1
    assert "--rollout-batch-size 1" in capsys.readouterr().err
    assert (whole[0] - parts[0]).norm() <= 1e-5 * whole[0].norm()
    before, after = (read_traces(tmp_path / name).to_pylist() for name in ("whole", "parts"))
    assert [r["trace"] for r in before] == [r["trace"] for r in after]
    monkeypatch.setattr(HFEngine, "_decoder", lambda *args: _no_memory(None))
    with pytest.raises(RunError, match="sampling"):
        run(tmp_path / "none", max_steps=1)
