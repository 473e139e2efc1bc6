"""The trace gradient against TRL's GRPOTrainer, on the same rollouts with the same rewards.

TRL samples nothing here: it is handed the traces that our run sampled and the rewards that our run
computed, and does all the rest (group advantages, log-probabilities, loss, backward) by itself.
"""

import pytest
import torch
from transformers import TrainerCallback

from lab_run import ROWS, lab_trainer
from native_reasoning.demo import base_path
from native_reasoning.records.folder import read_traces

trl = pytest.importorskip("trl", reason="TRL is in the test extra")
pytestmark = pytest.mark.filterwarnings("ignore")

TRACES, LONGEST = 4, 10


class Gradients(TrainerCallback):
    """The gradient of the first step, by parameter name."""

    def __init__(self) -> None:
        self.seen: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            named = model.named_parameters()
            self.seen = {name: p.grad.clone() for name, p in named if p.grad is not None}


def ours(folder, **settings):
    """The gradient, and for each question its prompt ids and its traces' ids and rewards."""
    keep = Gradients()
    trainer = lab_trainer(
        folder,
        [keep],
        reward="geometric_mean",
        answer_weight="none",
        format_loss_coef=0.0,
        ratio="none",
        baseline="none",
        clip="none",
        std_eps=1e-4 if settings["scale"] == "std" else None,
        max_trace_length=LONGEST,
        num_generations=TRACES,
        max_steps=1,
        **settings,
    )
    trainer.train()
    rows = read_traces(folder).to_pylist()
    found = {}
    for micro in trainer.collector.window.minibatches[0]:
        for group, traces in zip(micro.groups, micro.traces, strict=True):
            ids = [[*z, *([] if end is None else [end])] for z, end in traces.stops()]
            mine = [r for r in rows if r["row_id"] == group.example.row_id]
            rewards = [r["reward"] for r in sorted(mine, key=lambda r: r["k"])]
            found[group.example.question] = (list(group.prompt_ids), ids, rewards)
    return keep.seen, found


def theirs(folder, found, **settings):
    """The gradient of one step of GRPOTrainer on these rollouts."""
    keep = Gradients()
    waiting = {question: list(range(TRACES)) for question in found}
    worth = {
        (question, tuple(z)): reward
        for question, (_, ids, rewards) in found.items()
        for z, reward in zip(ids, rewards, strict=True)
    }

    def rollout(prompts, trainer):
        places = [(question, waiting[question].pop(0)) for question in prompts]
        ids = [found[question][1][k] for question, k in places]
        return {
            "prompt_ids": [found[question][0] for question, _ in places],
            "completion_ids": ids,
            "logprobs": [[0.0] * len(z) for z in ids],
        }

    def reward(prompts, completion_ids, **columns):
        return [worth[q, tuple(z)] for q, z in zip(prompts, completion_ids, strict=True)]

    args = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=TRACES * len(found),
        gradient_accumulation_steps=1,
        num_generations=TRACES,
        max_completion_length=LONGEST,
        max_steps=1,
        max_grad_norm=0,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    from datasets import Dataset

    trainer = trl.GRPOTrainer(
        str(base_path()),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": question} for question in found]),
        rollout_func=rollout,
        callbacks=[keep],
    )
    trainer.train()
    assert not any(waiting.values())
    return keep.seen


@pytest.mark.parametrize(
    ("loss_type", "length_norm", "factor"),
    [("grpo", "sequence_mean", 1), ("dapo", "token_mean", 1), ("dr_grpo", "token_sum", LONGEST)],
)
@pytest.mark.parametrize("scale", ["std", "none"])
def test_trace_gradient_is_grpos(loss_type, length_norm, factor, scale, tmp_path):
    own, found = ours(tmp_path / "own", length_norm=length_norm, scale=scale)
    scale_rewards = "group" if scale == "std" else "none"
    other = theirs(tmp_path / "trl", found, loss_type=loss_type, scale_rewards=scale_rewards)
    assert own.keys() == other.keys()
    a = torch.cat([g.flatten() for g in own.values()]) / factor
    b = torch.cat([other[name].flatten() for name in own])
    assert b.norm() > 1e-4
    assert (a - b).norm() <= 1e-5 * b.norm()
    assert len(found) == len(ROWS) // 4
