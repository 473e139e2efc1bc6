"""Losses and gradients that are not finite: skipped, counted, their rows kept apart."""

import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import QUARANTINE, read_metrics
from native_reasoning.training.recorder import FiniteGuard
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Killed, KillIn


class Spoil(TrainerCallback):
    """Makes a gradient infinite in some steps, counted from 0, before the guard looks."""

    def __init__(self, steps) -> None:
        self.steps = steps

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            next(model.parameters()).grad[0] = torch.inf


def make(folder: Path, spoiled=(), callbacks=(), **settings) -> NRTTrainer:
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_generations": 2,
        "max_trace_length": 4,
        "max_steps": 6,
        "save_steps": 1,
        "save_total_limit": None,
        "max_grad_norm": 0,
        "use_cpu": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    trainer = NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer(), callbacks=[*callbacks])
    trainer.callback_handler.callbacks.insert(0, Spoil(spoiled))
    return trainer


def quarantined(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / QUARANTINE).read_text().splitlines()]


def test_rows_of_a_skipped_update_are_kept_apart(tmp_path):
    trainer = make(tmp_path / "run", spoiled={1, 4})
    trainer.train()
    assert [m["skipped_updates"] for m in read_metrics(tmp_path / "run")] == [0, 1, 0, 0, 1, 0]
    rows = quarantined(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 2, 5, 5]
    for row in rows:
        example = trainer.train_groups[row["row_id"]].example
        assert (row["prompt"], row["answer"]) == (example.question, example.answer)
        assert row["line"] == example.line
        assert len(row["traces"]) == 2
    for p in trainer.model.parameters():
        assert p.isfinite().all()


def test_a_loss_that_is_not_a_number_is_skipped_whatever_its_gradient_is(tmp_path):
    trainer = make(tmp_path / "run", max_steps=2)
    plain = trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = plain(*args, **kwargs)
        return loss + torch.inf if trainer.state.global_step == 0 else loss  # its gradient is fine

    trainer.compute_loss = compute_loss
    trainer.train()
    assert [m["skipped_updates"] for m in read_metrics(tmp_path / "run")] == [1, 0]
    assert {row["step"] for row in quarantined(tmp_path / "run")} == {1}


def test_a_step_that_is_diagnosed_is_skipped_too(tmp_path):
    trainer = make(tmp_path / "run", diagnostics_steps=1)
    *others, last = (set(group.answer_ids) for group in trainer.train_groups)
    with torch.no_grad():  # of the tokens that stand in one answer alone
        trainer.model.get_input_embeddings().weight[[*last.difference(*others)]] = torch.nan
    trainer.train()
    assert trainer.state.global_step == 6
    assert QA[-1]["answer"] in {row["answer"] for row in quarantined(tmp_path / "run")}


def test_too_many_in_a_row_stop_the_run_and_say_what_to_try(tmp_path, monkeypatch):
    monkeypatch.setattr(FiniteGuard, "LIMIT", 3)
    trainer = make(tmp_path / "run", spoiled={0, 2, 3, 4, 5})
    with pytest.raises(RunError, match="3 updates in a row were not finite, the last at step 5"):
        trainer.train()
    assert {row["step"] for row in quarantined(tmp_path / "run")} == {1, 3, 4, 5}


def test_the_count_and_the_quarantine_go_on_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(FiniteGuard, "LIMIT", 3)
    options = {"spoiled": {1, 2, 3}}
    with pytest.raises(Killed):
        make(tmp_path / "run", callbacks=[KillIn(2)], **options).train()
    assert {row["step"] for row in quarantined(tmp_path / "run")} == {2, 3}  # killed in 3
    with pytest.raises(RunError, match="the last at step 4"):
        make(tmp_path / "run", **options).train(resume_from_checkpoint=True)
    assert [row["step"] for row in quarantined(tmp_path / "run")] == [2, 2, 3, 3, 4, 4]


def test_the_log_in_memory_stays_short(tmp_path, monkeypatch):
    monkeypatch.setattr("native_reasoning.training.trainer.LOGS_KEPT", 3)
    trainer = make(tmp_path / "run", save_strategy="no")
    trainer.train()
    assert len(trainer.state.log_history) <= 4  # the summary of transformers comes last
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
