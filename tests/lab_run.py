"""Short runs of the embedded base model, whose traces close themselves and are answered."""

from pathlib import Path

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.demo import base_path, make_rows
from native_reasoning.training.trainer import NRTTrainer
from tiny import folded

ROWS = make_rows("short_answer", "train", 12, seed=5)


def lab_trainer(folder: Path, callbacks=None, rows=ROWS, **arguments) -> NRTTrainer:
    """A trainer at 3 prompts x 4 traces a step; ``arguments`` are settings, those of
    the objective by their own name, or the trainer's."""
    given = {name: arguments.pop(name) for name in ("objective_fn", "funcs") if name in arguments}
    settings = {
        "preset": "nrt-ws",
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_trace_length": 10,
        "max_answer_length": 12,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "max_steps": 2,
        "max_grad_norm": 0,
        "save_strategy": "no",
        "use_cpu": True,
        **arguments,
    }
    return NRTTrainer(
        str(base_path()),
        NRTConfig(output_dir=str(folder), **folded(settings)),
        rows,
        objective=given.get("objective_fn"),
        reward_funcs=given.get("funcs", ()),
        callbacks=callbacks,
    )
