"""An objective and a reward function of your own: ``python examples/custom_objective.py``.

An objective says what each trace is worth and what each answer token weighs: any callable
``Scores -> Signal`` (objective/types.py). This one looks at the answer's hardest token::

    R_k = c_{k,i*},  i* = argmin_i b_i         the token that is least likely without a trace
    A_k = (R_k − mean R) / (std R + 1e-6)

A reward function judges text and has TRL's signature; its rewards are added to a preset's. This one
is a partial verifier: it knows that a trace which ends with the answer's digit is a good sign.

From the command line, in this folder (``--reward-funcs`` likewise, beside any ``--preset``)::

    nrt train --objective-func custom_objective:hardest_token --model M --data qa.jsonl
"""

import sys
import tempfile
from pathlib import Path

import torch

from native_reasoning import NRTConfig, NRTTrainer, Scores, Signal
from native_reasoning.demo import base_path, make_rows


def hardest_token(scores: Scores) -> Signal:
    """The objective above. Scores come without gradients; all that it returns is a constant."""
    hardest = scores.baseline.argmin()
    rewards = scores.answer[:, hardest].exp()  # (K,)
    spread = rewards.std() if len(rewards) > 1 else 0.0
    return Signal(
        rewards=rewards,
        baseline_reward=scores.baseline[hardest].exp(),
        advantages=(rewards - rewards.mean()) / (spread + 1e-6),
        answer_weights=torch.ones_like(scores.answer),  # (K, T)
    )


def ends_with_the_digit(completions: list[str], answer: list[str], **columns) -> list[float]:
    """Half a point where the last word of the trace is that of the answer; ``columns`` has more."""
    pairs = zip(completions, answer, strict=True)
    return [0.5 * (text.split()[-2:-1] == right.split()[-1:]) for text, right in pairs]


def train(folder: Path, steps: int, **custom) -> dict[str, float]:
    """Trains the embedded base model on sums and measures it on others."""
    args = NRTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        num_generations=8,
        max_trace_length=16,
        max_answer_length=20,
        learning_rate=5e-4,
        warmup_steps=0,
        eval_samples=200,
        save_strategy="no",
        use_cpu=True,
    )
    trainer = NRTTrainer(
        model=str(base_path()),
        args=args,
        train_dataset=make_rows("style_shift", "train", 16 * steps, seed=0),
        eval_dataset=make_rows("style_shift", "heldout", 200, seed=1_000_003),
        **custom,
    )
    trainer.train()
    return trainer.evaluate()


def main(steps: int = 60) -> None:
    """Both, one after the other."""
    torch.set_num_threads(1)
    runs = {
        "hardest_token, an objective": {"objective": hardest_token},
        "nrt-ws + ends_with_the_digit, a reward": {"reward_funcs": ends_with_the_digit},
    }
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, custom) in enumerate(runs.items()):
            found = train(Path(folder) / str(i), steps, **custom)
            think, without = found["eval_accuracy"], found["eval_accuracy_no_think"]
            print(f"{name}: {think:.1%} with thinking, {without:.1%} without")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
