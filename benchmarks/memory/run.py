"""Peak memory of training: ``python benchmarks/memory/run.py``.

Each setting trains two steps in a process of its own (CPU, float32, all lengths forced), and its
peak resident set is taken. Random Llamas of 17 M and of 100 M parameters, and, with ``--model
FOLDER``, a real model.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import speed

RESULTS = Path(__file__).with_name("results.json")
STEPS = 2


@dataclass(frozen=True)
class Setting:
    """Lengths in tokens; ``batch`` prompts of ``traces`` traces are a micro-batch, ``steps`` of
    which are an optimiser step."""

    prompt: int
    trace: int
    traces: int = 4
    batch: int = 1
    steps: int = 2
    rows: int | None = None
    checkpointing: bool = False
    model: str = "17M"
    answer: int = 16
    lora: bool = False
    in_4bit: bool = False


SETTINGS = {
    "short": Setting(128, 64),
    "long-prompt": Setting(512, 64),
    "long-trace": Setting(128, 256),
    "both-long": Setting(512, 256),
    "16-traces": Setting(128, 64, traces=16),
    "4-prompts": Setting(128, 64, batch=4),
    "4-prompts-16-traces": Setting(128, 64, traces=16, batch=4, steps=1),
    "4-prompts-long": Setting(512, 64, batch=4, steps=1),
    "two-rows": Setting(128, 256, traces=16, rows=2),
    "many-sampled": Setting(128, 64, traces=16, steps=8, rows=2),
    "checkpointing": Setting(128, 256, checkpointing=True),
    "checkpointing-16": Setting(128, 256, traces=16, checkpointing=True),
    "100M": Setting(128, 64, model="100M"),
    "100M-one-step": Setting(128, 64, traces=8, steps=1, model="100M"),
    "real": Setting(128, 32, model="real"),
    "whole": Setting(64, 48, traces=8, batch=4, steps=1, rows=8, model="real"),
    "lora": Setting(64, 48, traces=8, batch=4, steps=1, rows=8, model="real", lora=True),
    "qlora": Setting(
        64, 48, traces=8, batch=4, steps=1, rows=8, model="real", lora=True, in_4bit=True
    ),
    "whole-at-once": Setting(64, 48, traces=8, batch=4, steps=1, model="real"),
    "lora-at-once": Setting(64, 48, traces=8, batch=4, steps=1, model="real", lora=True),
}


def policy(name: str) -> Any:
    """A random Llama."""
    if name == "100M":
        speed.HIDDEN, speed.LAYERS, speed.HEADS, speed.KV_HEADS, speed.MLP = 640, 12, 10, 5, 1920
    return speed.policy()


def measure(setting: Setting, folder: str, model: str | None) -> dict[str, Any]:
    """Trains in this process."""
    import torch

    from native_reasoning import NRTConfig, NRTTrainer

    torch.set_num_threads(1)  # two wait for each other where others compute
    args = NRTConfig(
        output_dir=folder,
        max_steps=STEPS,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        num_generations=setting.traces,
        max_prompt_length=setting.prompt,
        max_trace_length=setting.trace,
        max_answer_length=setting.answer,
        per_device_train_batch_size=setting.batch,
        gradient_accumulation_steps=setting.steps,
        max_tokens_per_forward=tokens(setting),
        activation_checkpointing=setting.checkpointing,
        use_peft=setting.lora,
        load_in_4bit=setting.in_4bit,
    )
    process = peak()
    regime = speed.Regime(setting.prompt, setting.trace, setting.answer)
    if setting.model == "real":
        assert model is not None
        trainer = NRTTrainer(model, args, words(setting))
    else:
        rows = speed.rows(regime, STEPS * setting.batch * setting.steps)
        tokenizer = speed.tokenizer()
        trainer = NRTTrainer(policy(setting.model), args, rows, processing_class=tokenizer)
    began = peak()
    trainer.forwards.sampler.stop = lambda ids: None
    trainer.train()
    return {"measured": peak(), "before_a_model": process, "before_training": began}


def tokens(setting: Setting) -> int | None:
    """Those of a forward of so many full traces, of the empty one and of their prompt."""
    rows = setting.rows
    return rows and setting.prompt + (rows + 1) * (setting.trace + setting.answer + 4)


def words(setting: Setting) -> list[dict[str, str]]:
    """Questions and answers that fill the lengths of a real tokenizer, nearly."""
    text = " the" * (setting.prompt - 40)
    return [{"prompt": f"{i}{text}", "answer": "a b c d e f g h"} for i in range(8)]


def peak() -> int:
    """The most bytes that were resident in this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(name: str, model: str | None) -> dict[str, Any]:
    """One setting, in a process of its own."""
    order = [sys.executable, __file__, "--one", name, *(["--model", model] if model else [])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(order, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{name:22} {found['measured'] / 1e9:6.2f} GB", flush=True)
    return {**found, "setting": asdict(SETTINGS[name])}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", help="the folder of a real model, for the setting 'real'")
    parser.add_argument("--only", choices=SETTINGS, action="append", help="only these settings")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--one", choices=SETTINGS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        stdout, sys.stdout = sys.stdout, sys.stderr
        with tempfile.TemporaryDirectory() as folder:
            found = measure(SETTINGS[given.one], folder + "/run", given.model)
        print(json.dumps(found), file=stdout, flush=True)
        return
    names = given.only or [n for n in SETTINGS if given.model or SETTINGS[n].model != "real"]
    results = {name: compare(name, given.model) for name in names}
    if given.write:
        if given.only:  # beside what was measured before
            results = {**json.loads(RESULTS.read_text(encoding="utf-8")), **results}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
