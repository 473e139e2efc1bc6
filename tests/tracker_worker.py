"""One rank of tests/slow/test_trackers.py: trains, goes on from a checkpoint, and evaluates."""

import sys
from dataclasses import replace

import torch
from transformers import TrainerCallback

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model

#: Traces that would like to be more than text.
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "| a | b |\n|---|---|\n`code` **bold** [x](javascript:alert(1)) ![y](http://z) # h &amp; \\|",
    "lone \ud800 surrogate, \x1b[31mred\x1b[0m, \u202eright to left, \x00",
    "x" * 100_000,
    "NaN",
)


class Hostile(TrainerCallback):
    """Puts HOSTILE into the traces of a step before they are shown, and skips the first update, so
    that its loss is no number."""

    trainer: NRTTrainer

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.trainer.recorder.finite.saw_loss(torch.tensor(float("nan")))

    def on_step_end(self, args, state, control, **kwargs):
        newest = self.trainer.recorder._newest
        texts = iter(HOSTILE)
        for question, rows in newest.items():
            newest[question] = [replace(r, trace=next(texts, r.trace)) for r in rows]


def main(folder: str, trackers: str) -> None:
    torch.set_num_threads(1)
    for steps in (2, 4):
        args = NRTConfig(
            output_dir=f"{folder}/run",
            per_device_train_batch_size=3,
            gradient_accumulation_steps=1,
            num_generations=2,
            max_trace_length=4,
            max_answer_length=16,
            max_steps=steps,
            lr_scheduler_type="constant",
            warmup_steps=0,
            save_steps=2,
            diagnostics_steps=2,
            eval_strategy="steps",
            eval_steps=2,
            eval_samples=2,
            use_cpu=True,
            report_to=trackers,
        )
        hostile = Hostile()
        trainer = NRTTrainer(tiny_model(), args, QA, QA[:2], byte_tokenizer(), callbacks=[hostile])
        hostile.trainer = trainer
        trainer.train(resume_from_checkpoint=steps > 2)
    trainer.evaluate()


if __name__ == "__main__":
    main(*sys.argv[1:])
