"""A run that is killed and resumed equals the uninterrupted one, bit for bit."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Killed, KillIn


def make(folder: Path, callbacks=None, **settings) -> NRTTrainer:
    """A run of 6 steps; 12 rows at 4 prompts a step make an epoch of 3 steps."""
    values = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_generations": 3,
        "max_trace_length": 6,
        "learning_rate": 1e-3,
        "max_steps": 6,
        "save_steps": 1,
        "save_total_limit": None,
        "use_cpu": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    held_out = QA[:3] if "eval_strategy" in settings else None
    return NRTTrainer(tiny_model(), args, QA, held_out, byte_tokenizer(), callbacks=callbacks)


def ending(folder: Path):
    """What must be equal: weights, metrics, traces and the files of evaluations."""
    weights = load_file(folder / "checkpoint-6" / "model.safetensors")
    evaluations = {path.name: path.read_bytes() for path in folder.glob("evaluations/*")}
    return weights, read_metrics(folder), read_traces(folder), evaluations


SETTINGS = {
    "accumulation 1": {},
    "accumulation 2": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    # 5 prompts a step: 3 steps an epoch, the last with 2 prompts
    "a short last step": {"per_device_train_batch_size": 5},
    # two mini-batches, each trained on twice: steps 0-3 share a rollout, and so do 4-5
    "a window of four updates": {
        "steps_per_generation": 2,
        "num_iterations": 2,
        "per_device_train_batch_size": 3,
    },
    "warm-up and a schedule": {"warmup_steps": 3, "format_warmup_steps": 2},
    "evaluations": {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "eval_num_generations": 2,
        "max_answer_length": 16,
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each setting, made once."""
    made = {}

    def get(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp("whole") / "run"
            make(folder, **SETTINGS[name]).train()
            made[name] = ending(folder)
        return made[name]

    return get


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("name", SETTINGS)
def test_killed_and_resumed_run_is_bit_identical(name, step, whole, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        make(folder, [KillIn(step)], **SETTINGS[name]).train()
    make(folder, **SETTINGS[name]).train(resume_from_checkpoint=True)
    weights, metrics, traces, evaluations = ending(folder)
    expected_weights, expected_metrics, expected_traces, expected_evaluations = whole(name)
    assert weights.keys() == expected_weights.keys()
    for key, value in weights.items():
        assert torch.equal(value, expected_weights[key]), key
    assert metrics == expected_metrics
    assert [m["step"] for m in metrics if "loss" in m] == [1, 2, 3, 4, 5, 6]
    assert traces.equals(expected_traces)
    assert evaluations == expected_evaluations
    assert len(evaluations) == (6 if "eval_steps" in SETTINGS[name] else 0)


def test_an_evaluation_after_the_checkpoint_is_made_again(whole, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        make(folder, [KillIn(5)], **SETTINGS["evaluations"]).train()
    shutil.rmtree(folder / "checkpoint-5")
    late = folder / "evaluations" / "step-000005.parquet"
    late.write_bytes(b"harm")
    (folder / "evaluations" / "step-000006.parquet.tmp").write_bytes(b"half")
    resumed = make(folder, [KillIn(4)], **SETTINGS["evaluations"])
    with pytest.raises(Killed):
        resumed.train(resume_from_checkpoint=True)
    expected = whole("evaluations")[3]
    assert sorted(p.name for p in late.parent.iterdir()) == sorted(expected)[:4]
    make(folder, **SETTINGS["evaluations"]).train(resume_from_checkpoint=True)
    assert ending(folder)[3] == expected


def test_training_changed_the_weights(whole):
    weights, _, traces, _ = whole("accumulation 1")
    start = tiny_model().state_dict()
    changed = [
        key for key, value in weights.items() if key in start and start[key].shape == value.shape
    ]
    assert any(not torch.equal(weights[key], start[key]) for key in changed)
    assert traces.num_rows == 6 * 4 * 3


def test_a_window_is_sampled_once_and_recorded_once(whole):
    _, _, traces, _ = whole("a window of four updates")
    # 12 rows at 3 prompts: windows of steps 1-4 and 5-8; both mini-batches on their first pass
    assert sorted(set(traces["step"].to_pylist())) == [1, 2, 5, 6]


def test_gradient_accumulation_does_not_change_the_first_gradient(tmp_path):
    gradients = []

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            if state.global_step == 0:
                gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))

    for i, (batch, accumulation) in enumerate([(4, 1), (2, 2), (1, 4)]):
        make(
            tmp_path / str(i),
            [Keep()],
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            max_grad_norm=0,
        ).train()
    reference = gradients[0]
    for other in gradients[1:]:
        assert (other - reference).norm() <= 1e-5 * reference.norm()


def test_another_model_than_the_run_began_with_is_refused(tmp_path):
    made = make(tmp_path / "run", max_steps=1)
    made.train()
    args = made.args
    args.max_steps = 2
    other = NRTTrainer(tiny_model(seed=5), args, QA, None, byte_tokenizer())
    with pytest.raises(RunError, match="the model is not the one that this run began with"):
        other.train(resume_from_checkpoint=True)
    assert make(tmp_path / "run", max_steps=2).train(resume_from_checkpoint=True).global_step == 2
