"""Micro-batches in parts, and memory that runs out, by injection: the error says what to set."""

import re
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lab_run import lab_trainer
from native_reasoning.config.errors import RunError
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.rollout import hf
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training import memory
from native_reasoning.training.memory import fitting
from native_reasoning.training.step import Step
from watchers import Gradients

#: tokens that two traces of a prompt and its empty one have, and three have not
FEW = 70
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


def forwards(monkeypatch):
    """The traces of each group in every training forward, as they come."""
    plain, seen = Step.loss, []

    def loss(self, micro, model):
        seen.append([len(traces.ids) for traces in micro.traces])
        return plain(self, micro, model)

    monkeypatch.setattr(Step, "loss", loss)
    return seen


@pytest.mark.parametrize("preset", ["nrt-ws", "rlpr", "nover"])
@pytest.mark.parametrize("most", [1, FEW, 200])
def test_the_step_is_the_same_in_parts(preset, most, tmp_path, monkeypatch):
    seen = forwards(monkeypatch)
    exact = {"preset": preset, "max_steps": 2, "model_init_kwargs": {"dtype": "float64"}}
    whole = run(tmp_path / "whole", **exact)
    assert set(map(tuple, seen)) == {(4, 4, 4)}
    seen.clear()
    parts = run(tmp_path / "parts", **exact, max_tokens_per_forward=most)
    largest = max(map(sum, seen))
    assert largest < 12
    if preset == "nrt-ws":  # the others have rows for sampled answers too
        assert largest == {1: 1, FEW: 3, 200: 8}[most]
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
    parts = run(tmp_path / "parts", **exact, num_iterations=2, max_tokens_per_forward=FEW)
    assert (whole[0] - parts[0]).norm() <= 2e-8 * whole[0].norm()


def test_batch_and_accumulation_are_one(tmp_path, monkeypatch):
    seen = forwards(monkeypatch)
    exact = {"max_steps": 2, "model_init_kwargs": {"dtype": "float64"}}
    many = run(tmp_path / "many", **exact)
    one = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    once = run(tmp_path / "once", **exact, **one)
    assert seen == [[4, 4, 4]] * 4
    for a, b in zip(many, once, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}], ids=str)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_forward_that_does_not_fit_says_what_to_set(where, settings, tmp_path, monkeypatch):
    small(monkeypatch, rows=2, where=where)
    with pytest.raises(RunError, match="a forward of 288 tokens: CUDA out of memory") as caught:
        run(tmp_path / "run", max_steps=1, **settings)
    assert caught.value.fix.startswith("--max-tokens-per-forward 144, ")
    assert "--resume goes on" in caught.value.fix
    small(monkeypatch, rows=0, where=where)
    with pytest.raises(RunError, match=r"a forward of \d+ tokens") as caught:
        run(tmp_path / "one", max_steps=1, max_tokens_per_forward=1, **settings)
    assert caught.value.fix.startswith("--activation-checkpointing")


def test_the_run_goes_on_with_the_number_that_was_said(tmp_path, monkeypatch):
    saved = {"save_strategy": "steps", "save_steps": 1}
    whole = run(tmp_path / "whole", max_steps=3, **saved)
    run(tmp_path / "run", max_steps=2, **saved)
    small(monkeypatch, rows=2)
    with pytest.raises(RunError, match="out of memory"):
        run(tmp_path / "run", True, max_steps=3, **saved)
    (last,) = run(tmp_path / "run", True, max_steps=3, max_tokens_per_forward=50, **saved)
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
        def start(self, prompts, copies, *rest):
            if len(prompts) * copies > 4:
                _no_memory()
            return super().start(prompts, copies, *rest)

    monkeypatch.setattr(hf, "decoder_of", lambda model, share: Small(model))
    with pytest.raises(RunError, match="3 prompts of 4 traces sampled at once") as caught:
        run(tmp_path / "run", preset=preset, max_steps=1)
    said = re.match(r"--max-tokens-per-forward (\d+), ", caught.value.fix)
    run(tmp_path / "small", preset=preset, max_steps=1, max_tokens_per_forward=int(said[1]))
    monkeypatch.setattr(hf, "decoder_of", lambda *args: _no_memory())
    with pytest.raises(RunError, match="1 prompts of 4 traces") as caught:
        run(tmp_path / "none", preset=preset, max_steps=1, max_tokens_per_forward=1)
    assert caught.value.fix.startswith("a smaller --max-trace-length")


# -- What fits -------------------------------------------------------------------------------------


def test_the_memory_left_is_divided_by_what_a_token_takes(tmp_path, monkeypatch):
    """A quarter of the memory, a quarter of the tokens; twice the width, fewer tokens."""

    def found(left, **settings):
        monkeypatch.setattr(memory, "memory_left", lambda model, trained: left if trained else None)
        trainer = lab_trainer(tmp_path / "run", [], **settings)
        trainer.forwards.memory.find(trainer.train_groups[:3])
        return trainer.forwards.memory.found

    much, little = found(4 * 10**8), found(10**8)
    assert much["train"] == pytest.approx(4 * little["train"], rel=0.01)
    assert much["sample"] > much["train"]
    double = found(4 * 10**8, model_init_kwargs={"dtype": "float64"})
    assert double["train"] == pytest.approx(much["train"] / 2, rel=0.1)
    given = found(10**8, max_tokens_per_forward=77)
    assert given["train"] == 77
    ratio = little["sample"] / little["train"]
    assert given["sample"] == pytest.approx(77 * ratio, abs=2)
    assert found(None)["train"] > 10**15


def test_an_evaluation_before_training_needs_no_room_for_gradients(tmp_path, monkeypatch):
    trainer = lab_trainer(tmp_path / "run", [])
    found, model = trainer.forwards.memory, trainer.forwards.engine.model
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    weights = sum(p.nbytes for p in model.parameters())
    assert memory.memory_left(model, trained=False) == 10**9
    assert memory.memory_left(model, trained=True) == 10**9 - 3 * weights
    monkeypatch.setattr(memory, "memory_left", lambda model, trained: 0 if trained else 10**8)
    scored = []
    monkeypatch.setattr(memory.Memory, "_scored", lambda *about: scored.append(about))
    found.find_without_training(trainer.train_groups[:3])
    assert found.found is None
    assert scored == []
    assert 100 < found.engine.max_tokens == found.scorer.max_tokens < 10**6


def test_a_cpu_puts_no_more_together_than_pays_and_cuts_no_group_for_it(tmp_path, monkeypatch):
    seen = forwards(monkeypatch)
    monkeypatch.setattr(memory, "ENOUGH", (1, 1))
    trainer = lab_trainer(tmp_path / "run", [], **THREE, max_steps=1)
    trainer.train()
    assert seen == [[4], [4], [4]]
    assert trainer.collector.window.minibatches[0][0].recalls is None


def test_bytes_are_counted_while_they_are_alive():
    known = torch.ones(1000)
    with memory.Alive([known.untyped_storage().data_ptr()]) as alive:
        a = known + 1  # 4,000 bytes
        view = a[:10]
        b = a * 2
        del a, b  # the view keeps what it looks at
        assert (alive.now, alive.most) == (4000, 8000)
        known.add_(1)
        del view
        c = torch.zeros(10)
        assert (alive.now, alive.most, c.nbytes) == (40, 8000, 40)


def test_a_run_that_goes_on_computes_the_same_parts(tmp_path, monkeypatch):
    """Even where the memory left has changed meanwhile."""
    saved = {"save_strategy": "steps", "save_steps": 1}
    seen = forwards(monkeypatch)
    monkeypatch.setattr(memory, "memory_left", lambda model, trained: 2 * 10**6)
    run(tmp_path / "run", max_steps=1, **saved)
    before = list(seen)
    assert before != [[4, 4, 4]]
    seen.clear()
    monkeypatch.setattr(memory, "memory_left", lambda model, trained: 10**12)
    run(tmp_path / "run", True, max_steps=2, **saved)
    assert list(map(sum, seen)) == list(map(sum, before))


def test_the_allocator_of_a_cpu_is_understood_and_other_errors_pass():
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
    with pytest.raises(RunError, match="can't allocate"), fitting("it", "less"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), fitting("it", "less"):
        raise RuntimeError("shapes do not fit")
