"""Going on with a run: finished, changed, moved, or another one altogether."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import read_config, read_metrics, read_traces
from native_reasoning.training.trainer import NRTTrainer
from test_resume import Killed, KillIn, make
from tiny import QA, byte_tokenizer, tiny_model


def weights(folder, step):
    return load_file(folder / f"checkpoint-{step}" / "model.safetensors")


def test_a_finished_run_is_not_trained_further(tmp_path):
    # 4 steps end inside the second epoch of 3 steps
    make(tmp_path / "run", max_steps=4).train()
    before = weights(tmp_path / "run", 4)
    again = make(tmp_path / "run", max_steps=4)
    output = again.train(resume_from_checkpoint=True)
    assert output.global_step == again.state.global_step == 4
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    assert not (tmp_path / "run" / "checkpoint-5").exists()
    now = again.model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in before.items())


def test_other_data_is_refused(tmp_path):
    make(tmp_path / "run", max_steps=1).train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    args = NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, max_trace_length=6)
    other = NRTTrainer(tiny_model(), args, QA[1:], None, byte_tokenizer())
    with pytest.raises(RunError, match="training rows are not those"):
        other.train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_other_settings_are_said_and_recorded(tmp_path, capsys):
    make(tmp_path / "run", max_steps=1).train()
    make(tmp_path / "run", max_steps=2, learning_rate=5e-4).train(resume_from_checkpoint=True)
    assert "learning_rate 0.001 -> 0.0005" in capsys.readouterr().err
    config = read_config(tmp_path / "run")
    changed = [
        "learning_rate 0.001 -> 0.0005",
        "max_steps 1 -> 2",
    ]  # the warm-up is a share of them
    assert config["changed_on_resume"] == changed
    assert config["config"]["learning_rate"] == 5e-4


def test_a_finished_run_takes_no_other_settings(tmp_path, capsys):
    """config.yaml and the model's card would say that it was trained with them."""
    make(tmp_path / "run", max_steps=1).train()
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    make(tmp_path / "run", max_steps=1, learning_rate=0.5).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    told = "is finished, and nothing is trained with learning_rate 0.001 -> 0.5"
    assert told in capsys.readouterr().err


def test_a_checkpoint_may_be_named_by_its_name_alone(tmp_path):
    make(tmp_path / "run", max_steps=2).train()
    again = make(tmp_path / "run", max_steps=2)
    again.train(resume_from_checkpoint="checkpoint-1")
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [1, 2]
    with pytest.raises(RunError, match="--resume with one of: checkpoint-2"):
        again.train(resume_from_checkpoint="checkpoint-7")


def test_the_same_settings_change_nothing_in_the_config(tmp_path, capsys):
    constant = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}
    make(tmp_path / "run", max_steps=1, **constant).train()
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    make(tmp_path / "run", max_steps=2, **constant).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    assert "resuming" not in capsys.readouterr().err


def test_a_model_alone_is_nothing_to_go_on_from(tmp_path):
    make(tmp_path / "run", max_steps=1, save_only_model=True).train()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="checkpoint-1 holds the model alone"):
        make(tmp_path / "run", max_steps=2).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_an_open_window_goes_on_with_its_rows_or_not_at_all(tmp_path, capsys):
    window = {"steps_per_generation": 2, "num_iterations": 2, "per_device_train_batch_size": 3}
    with pytest.raises(Killed):
        make(tmp_path / "run", [KillIn(1)], **window).train()
    with pytest.raises(RunError, match="has not the rows of this step"):
        make(tmp_path / "run", data_seed=9, **window).train(True)
    assert "data_seed 42 -> 9" in capsys.readouterr().err
    make(tmp_path / "run", **{**window, "num_iterations": 3}).train(True)
    assert "num_iterations 2 -> 3" in capsys.readouterr().err
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_may_have_any_name(tmp_path):
    make(tmp_path / "run", max_steps=2).train()
    shutil.move(tmp_path / "run" / "checkpoint-1", tmp_path / "run" / "best")
    make(tmp_path / "run", max_steps=3).train(resume_from_checkpoint=tmp_path / "run" / "best")
    assert [m["step"] for m in read_metrics(tmp_path / "run")] == [1, 2, 3]


def test_traces_survive_an_exception(tmp_path):
    with pytest.raises(Killed):
        make(tmp_path / "run", [KillIn(2)], save_strategy="no").train()
    assert sorted(set(read_traces(tmp_path / "run")["step"].to_pylist())) == [1, 2]


def test_config_has_what_equal_bits_depend_on(tmp_path):
    make(tmp_path / "run", max_steps=1).train()
    config = read_config(tmp_path / "run")
    assert config["machine"]["threads"] == torch.get_num_threads()
    assert config["machine"]["processes"] == 1
    assert config["config"]["weight_decay"] == 0.01
    assert json.dumps(config["versions"])
