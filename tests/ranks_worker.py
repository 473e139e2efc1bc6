"""One rank of test_faults_ranks.py: what goes wrong on rank 1 alone; with a second argument, an
error of its own."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

RANK = int(os.environ["RANK"])


class Trouble(TrainerCallback):
    """On rank 1: an infinite gradient in the first step, a signal in the third."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if RANK and state.global_step == 0:
            next(model.parameters()).grad[0] = torch.inf
        if RANK and state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)


class Mistake(TrainerCallback):
    """On rank 1 an error that nobody expects, while rank 0 waits for it."""

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if RANK:
            raise RuntimeError("a mistake of its own")


def main(folder: str, mistake: str = "") -> None:
    torch.set_num_threads(1)

    def make() -> NRTTrainer:
        args = NRTConfig(
            output_dir=f"{folder}/run",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            num_generations=2,
            max_trace_length=4,
            max_steps=6,
            max_grad_norm=0,
            save_steps=100,
            use_cpu=True,
        )
        return NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer())

    trainer = make()
    trainer.callback_handler.callbacks.insert(0, Mistake() if mistake else Trouble())
    trainer.train()
    try:
        make().train()
        refused = ""
    except RunError as error:
        refused = error.what
    seen = {
        "received": trainer.checkpoints.signals.received,
        "steps": trainer.state.global_step,
        "refused": refused,
        "weights": [p.detach().sum().item() for p in trainer.model.parameters()],
    }
    Path(folder, f"seen-{RANK}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
