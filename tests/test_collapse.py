"""The collapse guard: its rule on made-up histories, and what it does to a run."""

import json

import pytest
import torch
from transformers import TrainerCallback

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.collapse import KNOWN, LOWERED, SILENT, WINDOW, CollapseGuard
from native_reasoning.records.folder import read_metrics
from native_reasoning.records.metrics import COLLAPSE, STATES
from native_reasoning.records.progress import numbers_text
from native_reasoning.training.resume import checkpoints
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

GOOD = {"empty": 0.1, "closed": 0.9, "answer_logp": -1.0, "skipped_updates": 0.0}
SAYS = {"specificity": 0.3, "specificity_se": 0.1}
NOTHING = {"specificity": 0.1, "specificity_se": 0.1}


def states(*rows: dict[str, float]) -> list[str]:
    guard = CollapseGuard()
    found = [guard.look({**GOOD, **row}, i, tell=False)[COLLAPSE] for i, row in enumerate(rows)]
    return [STATES[int(state)] for state in found]


def end(*rows: dict[str, float]) -> str:
    return states(*rows)[-1]


@pytest.mark.parametrize(
    ("bad", "state"),
    [
        ({}, "healthy"),
        ({"empty": 0.59}, "healthy"),
        ({"empty": 0.7}, "drifting"),
        ({"empty": 0.96}, "collapsed"),
        ({"closed": 0.5}, "healthy"),
        ({"closed": 0.4}, "drifting"),
        ({"closed": 0.05}, "collapsed"),
        ({"answer_logp": -1.2}, "healthy"),
        ({"answer_logp": -1.5}, "drifting"),
        ({"answer_logp": -2.5}, "collapsed"),
        ({"answer_logp": -0.1}, "healthy"),
        ({"skipped_updates": 0.5}, "drifting"),
        ({"skipped_updates": 1.0}, "collapsed"),
    ],
)
def test_a_window_of_bad_steps(bad, state):
    assert end({}, *[bad] * WINDOW) == state
    assert states({}, *[bad] * (WINDOW - 2)) == ["healthy"] * (WINDOW - 1)  # not yet a window


def test_traces_that_never_closed_have_not_stopped_closing():
    assert end({"closed": 0.2}, *[{"closed": 0.0}] * WINDOW) == "healthy"


def test_exchanges_that_say_nothing():
    assert end(*[NOTHING] * (KNOWN - 1)) == "healthy"
    assert end(*[NOTHING] * KNOWN) == "drifting"
    assert end(*[NOTHING] * (KNOWN - 1), SAYS) == "healthy"
    assert end(*[SAYS] * KNOWN, *[NOTHING] * SILENT) == "drifting"
    assert end(*[SAYS] * KNOWN, *[NOTHING] * (SILENT - 1)) == "healthy"
    # where most traces are empty, the few others do not speak for them
    assert end(*[{**SAYS, "empty": 0.55}] * KNOWN) == "drifting"


def test_a_collapse_ends_when_traces_are_about_their_question_again():
    collapsed = [{}, *[{"answer_logp": -3.0, **NOTHING}] * WINDOW]
    assert end(*collapsed) == "collapsed"
    assert end(*collapsed, *[{}] * WINDOW) == "collapsed"  # only the answers came back
    assert end(*collapsed, *[SAYS] * WINDOW) == "healthy"


def test_without_exchanges_the_window_alone_decides():
    collapsed = [{}, *[{"answer_logp": -3.0}] * WINDOW]
    assert end(*collapsed) == "collapsed"
    assert end(*collapsed, *[{}] * WINDOW) == "healthy"


def test_what_is_said(capsys):
    guard = CollapseGuard()
    for i, row in enumerate([GOOD, *[{**GOOD, "empty": 0.7}] * WINDOW, *[GOOD] * WINDOW]):
        guard.look(row, i, tell=True)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "drifting: 64% of the traces are empty" in told[0]
    assert told[1].endswith("healthy again")


def test_it_goes_on_after_a_checkpoint():
    rows = [{}, *[{"answer_logp": -1.5, **NOTHING}] * 6, *[{"empty": 0.97}] * 9]
    whole, first = CollapseGuard(), CollapseGuard()
    said = [whole.look({**GOOD, **row}, i, tell=False) for i, row in enumerate(rows)]
    before = [first.look({**GOOD, **row}, i, tell=False) for i, row in enumerate(rows[:8])]
    second = CollapseGuard()
    second.restore(json.loads(json.dumps(first.state())))
    after = [second.look({**GOOD, **row}, i, tell=False) for i, row in enumerate(rows[8:])]
    assert before + after == said


def test_the_progress_line_shows_it():
    logs = {**GOOD, "reward": 1.0, "reward_baseline": 0.5, "uplift": 0.1, "trace_length": 5.0}
    assert numbers_text({**logs, COLLAPSE: 1.0}).startswith("drifting  ")
    assert "healthy" not in numbers_text({**logs, COLLAPSE: 0.0})


class Rates(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append(optimizer.param_groups[0]["lr"])


def make(folder, rates, **settings) -> NRTTrainer:
    args = NRTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_trace_length=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=1,
        save_total_limit=None,
        use_cpu=True,
        **settings,
    )
    trainer = NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer(), callbacks=[rates])
    plain = trainer.recorder.collapse.look

    def look(logs, step, *, tell):  # answers get unlikely from the second step on
        worse = {**logs, "answer_logp": -1.0 if step == 1 else -9.0}
        return plain(worse, step, tell=tell)

    trainer.recorder.collapse.look = look  # type: ignore[method-assign]
    return trainer


def test_it_stops_a_run_that_can_go_on(tmp_path, capsys):
    rates = Rates()
    trainer = make(tmp_path / "run", rates, max_steps=WINDOW + 5, on_collapse="stop")
    with pytest.raises(RunError, match=rf"collapsed and was stopped at step {WINDOW}"):
        trainer.train()
    assert checkpoints(tmp_path / "run")[0].name == f"checkpoint-{WINDOW}"
    assert "collapsed: reference answers" in capsys.readouterr().err
    again = make(tmp_path / "run", rates, max_steps=WINDOW + 2)
    assert again.train(resume_from_checkpoint=True).global_step == WINDOW + 2


def test_it_lowers_the_learning_rate_once_and_resumes_with_it(tmp_path):
    whole, first, second = Rates(), Rates(), Rates()
    steps = WINDOW + 4
    one = make(tmp_path / "whole", whole, max_steps=steps, on_collapse="lower_lr")
    one.train()
    expected = [1e-3] * WINDOW + [1e-3 * LOWERED] * 4
    assert whole.seen == pytest.approx(expected)
    make(tmp_path / "run", first, max_steps=WINDOW + 2, on_collapse="lower_lr").train()
    two = make(tmp_path / "run", second, max_steps=steps, on_collapse="lower_lr")
    two.train(resume_from_checkpoint=True)
    assert first.seen + second.seen == whole.seen
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_supervised_training_has_no_traces_to_collapse(tmp_path):
    args = NRTConfig(
        output_dir=str(tmp_path / "run"),
        preset="sft",
        max_trace_length=4,
        max_steps=2,
        save_strategy="no",
        use_cpu=True,
    )
    NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer()).train()
    assert not any(COLLAPSE in line for line in read_metrics(tmp_path / "run"))
