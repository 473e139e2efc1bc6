"""Checkpoints that were damaged, left half-written, or are in the way."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.disk import CHECKSUMS, damage, seal
from native_reasoning.records.folder import RunFolder, read_metrics
from native_reasoning.training.checkpoints import KEPT, STAGING, publish
from native_reasoning.training.resume import checkpoints, find_checkpoint, newest_checkpoint
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model


def make(folder: Path, **settings) -> NRTTrainer:
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_generations": 2,
        "max_trace_length": 4,
        "max_answer_length": 16,
        "max_steps": 4,
        "save_steps": 1,
        "save_total_limit": 2,
        "use_cpu": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    held_out = QA if "eval_strategy" in settings else None
    return NRTTrainer(tiny_model(), args, QA, held_out, byte_tokenizer())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    make(folder).train()
    return folder


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink])
def test_every_file_is_watched(harm, run, capsys):
    files = sorted(p.name for p in (run / "checkpoint-4").iterdir())
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= {*files}
    assert {"trainer_state.json", KEPT, CHECKSUMS} <= {*files}
    assert "training_args.bin" not in files
    for name in files:
        keep = run.parent / "keep"
        shutil.copytree(run / "checkpoint-4", keep)
        harm(run / "checkpoint-4" / name)
        wrong = damage(run / "checkpoint-4")
        assert wrong, name
        if name != CHECKSUMS:
            assert len(wrong) == 1 and wrong[0].startswith(name)
        assert find_checkpoint(True, run) == run / "checkpoint-3"
        assert f"passing over {run / 'checkpoint-4'}" in capsys.readouterr().err
        shutil.rmtree(run / "checkpoint-4")
        keep.rename(run / "checkpoint-4")
    assert find_checkpoint(True, run) == run / "checkpoint-4"


def test_a_damaged_checkpoint_that_is_asked_for_is_refused(run):
    flip(run / "checkpoint-4" / "optimizer.pt")
    with pytest.raises(RunError, match="optimizer.pt was changed"):
        make(run).train(resume_from_checkpoint=str(run / "checkpoint-4"))
    flip(run / "checkpoint-3" / "optimizer.pt")
    with pytest.raises(RunError, match="no whole checkpoint"):
        make(run).train(resume_from_checkpoint=True)


def test_the_last_whole_checkpoint_outlives_the_limit(run):
    """Resumed behind a damaged one, with a limit of 1: what is saved next must not be deleted for
    the sake of a later number."""
    flip(run / "checkpoint-4" / "model.safetensors")
    make(run, save_total_limit=1, max_steps=4).train(resume_from_checkpoint=True)
    assert (run / "set-aside-checkpoint-4").is_dir()
    assert [path.name for path in checkpoints(run)] == ["checkpoint-4"]
    assert damage(run / "checkpoint-4") == []
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]


def test_resuming_from_an_older_one_sets_the_later_ones_aside(run, finished, capsys):
    make(run, max_steps=3).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert [path.name for path in checkpoints(run)] == ["checkpoint-3"]
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3]
    make(run).train(resume_from_checkpoint=True)
    for name in ("model.safetensors", "optimizer.pt"):
        one, other = (folder / "checkpoint-4" / name for folder in (run, finished))
        assert one.read_bytes() == other.read_bytes()


def test_a_whole_checkpoint_is_not_replaced_and_a_damaged_one_is_set_aside(tmp_path):
    final = tmp_path / "checkpoint-1"

    def stage(text: str) -> Path:
        staged = tmp_path / STAGING / "checkpoint-1"
        staged.mkdir(parents=True)
        (staged / "a").write_text(text)
        return staged

    publish(stage("one"), final)
    (final / "notes").write_text("mine")
    publish(stage("one"), final)
    assert (final / "notes").read_text() == "mine"
    shutil.rmtree(tmp_path / STAGING)
    (final / "a").write_text("harm")
    publish(stage("one"), final)
    assert (final / "a").read_text() == "one"
    assert (tmp_path / "set-aside-checkpoint-1" / "a").read_text() == "harm"
    assert not list((tmp_path / STAGING).iterdir())


def test_what_a_killed_writer_left_does_not_get_into_the_next_checkpoint(tmp_path):
    left = tmp_path / "run" / STAGING / "checkpoint-1"
    left.mkdir(parents=True)
    (left / "rollout_window_0.json").write_text("{}")
    make(tmp_path / "run", max_steps=1).train()
    assert not (tmp_path / "run" / "checkpoint-1" / "rollout_window_0.json").exists()


def test_a_copy_does_not_count_as_the_newest(tmp_path):
    """Of two runs, the second with a limit of 1."""
    make(tmp_path / "run", max_steps=3).train()
    shutil.move(tmp_path / "run" / "checkpoint-3", tmp_path / "run" / "checkpoint-3.bak")
    make(tmp_path / "run", max_steps=4, save_total_limit=1).train(resume_from_checkpoint=True)
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-4"
    assert (tmp_path / "run" / "checkpoint-3.bak").is_dir()


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_samples": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "trace_length",  # of which we say what it is
    "greater_is_better": True,
}


def best_of(values: list[float], trainer: NRTTrainer) -> NRTTrainer:
    """The trainer, whose evaluation after step i finds values[i - 1]."""
    plain = trainer.evaluate

    def evaluate(*args, **kwargs):
        found = plain(*args, **kwargs)
        return {**found, "eval_trace_length": values[trainer.state.global_step - 1]}

    trainer.evaluate = evaluate  # type: ignore[method-assign]
    return trainer


def test_the_newest_checkpoint_stays_where_another_is_the_best(tmp_path):
    trainer = best_of([9, 1, 1], make(tmp_path / "run", max_steps=3, save_total_limit=1, **BEST))
    trainer.train()
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-3", "checkpoint-1"]


def weights(trainer: NRTTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_the_best_checkpoint_is_found_again_wherever_the_run_folder_is(tmp_path, monkeypatch):
    values = [1, 9, 1, 1]
    monkeypatch.chdir(tmp_path)
    whole = best_of(values, make(Path("whole"), save_total_limit=1, **BEST))
    whole.train()
    best_of(values, make(Path("run"), max_steps=3, save_total_limit=1, **BEST)).train()
    shutil.move("run", "moved")
    moved = best_of(values, make(tmp_path / "moved", save_total_limit=1, **BEST))
    moved.train(resume_from_checkpoint=True)
    assert [path.name for path in checkpoints("moved")] == ["checkpoint-4", "checkpoint-2"]
    assert all(map(torch.equal, weights(whole), weights(moved)))
    again = make(tmp_path / "moved", save_total_limit=1, **BEST)
    again.train(resume_from_checkpoint=True)  # finished: the best is what it ended with
    assert all(map(torch.equal, weights(whole), weights(again)))
    last = load_file("moved/checkpoint-4/model.safetensors")
    assert not all(torch.equal(last[name], p) for name, p in again.model.named_parameters())


def test_killed_while_a_run_is_cut_back(run, monkeypatch):
    """Whatever was cut must be made again, not skipped."""

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "cut_back", killed)
        with pytest.raises(KeyboardInterrupt):
            make(run).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    make(run).train(resume_from_checkpoint=True)
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]
    with monkeypatch.context() as patch:
        patch.setattr("native_reasoning.training.resume.set_aside", killed)
        with pytest.raises(KeyboardInterrupt):
            make(run).train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert [row["step"] for row in read_metrics(run)] == [1, 2, 3, 4]  # nothing was cut yet


def test_a_final_that_holds_another_model_is_set_aside(tmp_path):
    trainer = make(tmp_path / "run", max_steps=1)
    trainer.train()
    final = tmp_path / "run" / "final"
    trainer.checkpoints.save_whole_model(final)
    (final / "notes.txt").write_text("mine")
    trainer.checkpoints.save_whole_model(final)  # the same model
    assert (final / "notes.txt").read_text() == "mine"
    assert damage(final) == []
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)
    trainer.checkpoints.save_whole_model(final)
    assert (tmp_path / "run" / "set-aside-final" / "notes.txt").read_text() == "mine"
    assert not (final / "notes.txt").exists()
    assert damage(final) == []
    assert not (tmp_path / "run" / STAGING).exists()


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", "fifo", "a\0b"])
def test_checksums_do_not_lead_astray(name, tmp_path):
    (tmp_path / "outside").write_text("x")
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    os.mkfifo(folder / "fifo")
    (folder / CHECKSUMS).write_text(json.dumps({name: [1, "x"]}))
    assert damage(folder) == [f"{name} is missing"]


def test_what_a_file_says_cannot_command_a_terminal(run, capsys):
    known = json.loads((run / "checkpoint-4" / CHECKSUMS).read_text())
    (run / "checkpoint-4" / CHECKSUMS).write_text(json.dumps({**known, "a\x1b[2Jb": [1, "x"]}))
    assert newest_checkpoint(run) == run / "checkpoint-3"
    told = capsys.readouterr().err
    assert "\\x1b[2J" in told
    assert "\x1b" not in told


@pytest.mark.parametrize("change", [{"config": [1]}, {"config": None}])
def test_a_config_that_is_none(change, run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    with pytest.raises(RunError, match=r"config.yaml cannot be read"):
        make(run).train(resume_from_checkpoint=True)


def test_a_step_that_is_no_number(run):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text('{"step": 1e999}\n' + text)
    with pytest.raises(RunError, match="line 1 is"):
        make(run).train(resume_from_checkpoint=True)


def test_names_that_are_no_checkpoints_do_not_count(tmp_path):
    for name in ("checkpoint-2", "checkpoint-x", "checkpoint-3.bak", "set-aside-checkpoint-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("a")
        seal(tmp_path / name)
    (tmp_path / "checkpoint-7").write_text("a file")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"a": [1', "\\xff"])
def test_checksums_that_say_nothing_are_damage(text, tmp_path):
    (tmp_path / CHECKSUMS).write_text(text)
    assert damage(tmp_path) == [f"{CHECKSUMS} cannot be read"]


class Harm:
    """What unpickles into a file that should not be there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_runs_code_is_not_run(name, run, tmp_path):
    """Even with checksums that fit."""
    checkpoint = run / "checkpoint-3"
    torch.save({"state": Harm(str(tmp_path / "harmed"))}, checkpoint / name)
    seal(checkpoint)
    with pytest.raises(RunError, match="not plain data"):
        make(run).train(resume_from_checkpoint=str(checkpoint))
    assert not (tmp_path / "harmed").exists()


def test_callbacks_that_keep_a_state_get_it_back(tmp_path):
    from transformers import EarlyStoppingCallback

    def trained(folder: Path, steps: int, resume: bool):
        trainer = make(
            folder,
            max_steps=steps,
            eval_strategy="steps",
            eval_steps=1,
            save_steps=1,
            eval_samples=2,
            metric_for_best_model="eval_accuracy",
            greater_is_better=True,
        )
        patience = EarlyStoppingCallback(early_stopping_patience=9)
        trainer.add_callback(patience)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    first = trained(tmp_path / "run", 2, resume=False)
    assert first.state.best_metric == 0  # so that every later evaluation is no better
    resumed = trained(tmp_path / "run", 3, resume=True)
    (found,) = (
        c for c in resumed.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)
    )
    assert found.early_stopping_patience_counter == 2  # once before, once since
