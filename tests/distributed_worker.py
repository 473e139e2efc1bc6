"""One rank of tests/test_distributed.py: trains a step and saves what the rank saw."""

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from native_reasoning.config import NRTConfig
from native_reasoning.lab import base_path, make_rows
from native_reasoning.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model


class KeepGradient(TrainerCallback):
    """Saves the gradient of the first step, as the optimiser would see it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            torch.save(gradient, self.path)


def main(folder: str, batch: str, rows: str, steps_per_generation: str, preset: str) -> None:
    torch.set_num_threads(1)
    window = int(steps_per_generation)
    lab = preset != "nrt-ws"  # rivals sample answers, and the lab's base is one that closes traces
    data = make_rows("short_answer", "train", 12, seed=5) if lab else QA
    args = NRTConfig(
        output_dir=f"{folder}/run",
        preset=preset,
        per_device_train_batch_size=int(batch),
        gradient_accumulation_steps=1,
        num_generations=3,
        max_trace_length=10 if lab else 6,
        max_answer_length=12,
        max_steps=3,
        learning_rate=1e-3,
        max_grad_norm=0,
        save_steps=1,
        save_total_limit=None,
        steps_per_generation=window,
        use_cpu=True,
    )
    keep = KeepGradient(Path(folder) / f"gradient-{args.process_index}.pt")
    trainer = NRTTrainer(
        str(base_path()) if lab else tiny_model(),
        args,
        data[: int(rows)],
        data[:3],
        None if lab else byte_tokenizer(),
        callbacks=[keep],
    )
    trainer.train()
    metrics = trainer.evaluate()
    torch.save(metrics, Path(folder) / f"metrics-{args.process_index}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
