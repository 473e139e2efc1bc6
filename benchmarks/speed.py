"""Seconds and memory of a training step, ours beside TRL's: ``python benchmarks/speed.py --json``.

Both train the same random Llama (17.3 M parameters) on the same prompts with K = 8 traces each, all
lengths forced, float32, the same number of threads. TRL's side is what its users do today: a
``GRPOTrainer`` with a reward function that scores the reference answer with the policy (one batched
forward, logits at the answer's tokens alone). *trl* is TRL at its defaults; *trl-tuned* is without
gradient checkpointing. Ours also trains the answer, which TRL's side does not.

Each side lives in a process of its own, so that its peak memory (resident set) is its own; the
processes take turns, one step at a time. The first step of each is not counted. *ratio* is the
faster of TRL's settings over ours; *memory_ratio* is ours over the leaner of them. *floor_seconds*
is the counted work of a step (``flops``) over the machine's rate at multiplying large matrices,
measured in the same run. *outside* is the share of our step that is neither model (forward,
backward, optimiser) nor sampling.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

SIDES = ("ours", "trl", "trl-tuned")
#: Of our step; ``records/metrics.py`` says what each is.
STAGES = ("sampling", "scoring", "backward", "optimiser")
RESULTS = Path(__file__).with_suffix(".json")
HIDDEN, LAYERS, HEADS, KV_HEADS, MLP, VOCABULARY = 256, 6, 4, 2, 768, 49_152


@dataclass(frozen=True)
class Regime:
    """``prompts`` are sampled at once and trained on in ``updates`` optimiser steps; lengths are in
    tokens, the answer's with its end-of-turn token."""

    prompt: int
    trace: int
    answer: int = 16
    prompts: int = 4
    updates: int = 1
    traces: int = 8


REGIMES = {
    "short": Regime(128, 64),
    "long-prompt": Regime(512, 64),
    "long-trace": Regime(32, 256),
    "off-policy": Regime(128, 64, prompts=8, updates=8),
    "long-prompt-4": Regime(512, 64, traces=4),
    "long-prompt-16": Regime(512, 64, traces=16),
}
#: The last two are for ours alone: how time grows with K.
COMPARED = ("short", "long-prompt", "long-trace", "off-policy")


# -- What both sides train -------------------------------------------------------------------------


def tokenizer() -> Any:
    """One token per word, w0 ... , so that lengths in tokens are lengths in words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<eos>", "<pad>", "<think>", "</think>"]
    words = {w: i for i, w in enumerate([*special, *(f"w{i}" for i in range(VOCABULARY - 4))])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<pad>")
    made.add_tokens(["<think>", "</think>"])
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}<eos>"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<think>{% endif %}"
    )
    return made


def policy() -> Any:
    """The random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=MLP,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(shape)


def rows(regime: Regime, steps: int) -> list[dict[str, str]]:
    """Question and answer of each prompt, words drawn with a fixed seed; a question is one word
    short of the prompt, which ``<think>`` ends."""
    import random

    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(f"w{draw.randrange(VOCABULARY - 4)}" for _ in range(words))

    count = regime.prompts * steps
    return [
        {"prompt": text(regime.prompt - 1), "answer": text(regime.answer - 1)} for _ in range(count)
    ]


# -- One side, in its own process ------------------------------------------------------------------


def turns(regime: Regime) -> Any:
    """A callback that times every ``updates`` optimiser steps, and waits for its turn after them.

    A line on stdout says the seconds and the peak memory so far; one on stdin gives the turn.
    """
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        began = 0.0
        idle: ClassVar[list[float]] = []

        def wait(self) -> None:
            asked = time.perf_counter()
            sys.stdin.readline()
            self.began = time.perf_counter()
            self.idle.append(self.began - asked)

        def on_train_begin(self, args, state, control, **kwargs):
            say({"ready": True})
            self.wait()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % regime.updates == 0:
                seconds = time.perf_counter() - self.began
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                say({"seconds": seconds, "peak_gb": peak / 1e9})
                if state.global_step < state.max_steps:
                    self.wait()

    return Turns()


def say(message: dict[str, Any]) -> None:
    print(json.dumps(message), file=sys.__stdout__, flush=True)


def common(regime: Regime, steps: int, folder: str) -> dict[str, Any]:
    """Settings that both trainers share."""
    return {
        "output_dir": folder,
        "max_steps": steps * regime.updates,
        "num_generations": regime.traces,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
    }


def profile_of(timings: list[dict[str, Any]], first: int, last: int) -> dict[str, Any]:
    """Mean seconds of each stage over steps ``first`` to ``last``, and of a whole step."""
    from native_reasoning.records.metrics import STAGES

    lines = [t for t in timings if "step_seconds" in t and first <= t["step"] <= last]
    seconds = {
        name: sum(line[f"{name}_seconds"] for line in lines) / len(lines)
        for name in (*STAGES, "other", "step")
    }
    return {"steps": len(lines), "seconds": seconds}


def run_ours(regime: Regime, steps: int, folder: str) -> None:
    from native_reasoning import NRTConfig, NRTTrainer
    from native_reasoning.records.folder import read_timings

    args = NRTConfig(
        **common(regime, steps, folder),
        max_prompt_length=regime.prompt,
        max_trace_length=regime.trace,
        max_answer_length=regime.answer,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=regime.prompts // regime.updates,
        steps_per_generation=regime.prompts,
    )
    watch = turns(regime)
    trainer = NRTTrainer(
        policy(), args, rows(regime, steps), processing_class=tokenizer(), callbacks=[watch]
    )
    trainer.forwards.engine.stop = lambda ids: None
    group = trainer.train_groups[0]
    assert (len(group.prompt_ids), len(group.answer_ids)) == (regime.prompt, regime.answer)
    trainer.train()
    first = regime.updates + 1  # the steps before it warm up
    found = profile_of(read_timings(folder), first, steps * regime.updates)
    others = sum(watch.idle[2:]) / found["steps"]  # waits for a turn that fell into these steps
    for name in ("other", "step"):
        found["seconds"][name] -= others
    say(found)


def run_trl(regime: Regime, steps: int, folder: str, tuned: bool) -> None:
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    made, model = tokenizer(), policy()
    per_step = regime.prompts * regime.traces // regime.updates
    args = GRPOConfig(
        **common(regime, steps, folder),
        max_completion_length=regime.trace,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=per_step // 8,
        steps_per_generation=per_step // 8 * regime.updates,
        generation_kwargs={"eos_token_id": None},
        gradient_checkpointing=not tuned,
    )

    @torch.no_grad()
    def probability(prompts, completion_ids, answer, **kwargs):
        """The geometric mean of the reference's probability after each trace."""
        model.eval()
        tag = made.convert_tokens_to_ids("</think>")
        texts = made([f"{p} <think>" for p in prompts], add_special_tokens=False)["input_ids"]
        ends = made([f"{a} <eos>" for a in answer], add_special_tokens=False)["input_ids"]
        whole = [p + z + [tag] + y for p, z, y in zip(texts, completion_ids, ends, strict=True)]
        width = max(map(len, whole))
        ids = torch.ones(len(whole), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(whole):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        span = max(map(len, ends))
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=span + 1).logits[:, :-1]
        targets = ids[:, -span:]
        logps = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        model.train()
        return [row[-len(y) :].mean().exp().item() for row, y in zip(logps, ends, strict=True)]

    GRPOTrainer(
        model,
        reward_funcs=probability,
        args=args,
        train_dataset=Dataset.from_list(rows(regime, steps)),
        processing_class=made,
        callbacks=[turns(regime)],
    ).train()


def run_side(side: str, regime: Regime, steps: int, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    sys.stdout = sys.stderr  # stdout carries the messages of ``turns`` alone
    with tempfile.TemporaryDirectory() as folder:
        if side == "ours":
            run_ours(regime, steps, folder + "/run")
        else:
            run_trl(regime, steps, folder + "/run", tuned=side == "trl-tuned")


# -- The floor -------------------------------------------------------------------------------------


def flops(regime: Regime) -> dict[str, float]:
    """Floating-point operations of one step, each token computed once: two per weight and token
    forward, twice that backward, and the products of attention. The head acts on sampled tokens,
    and in training on scored ones."""
    body = LAYERS * (
        HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KV_HEADS // HEADS) + 3 * HIDDEN * MLP
    )  # weights that every token meets
    head = HIDDEN * VOCABULARY

    def attention(queries: int, before: int) -> float:
        """Of tokens that see ``before`` earlier ones and those among themselves."""
        return 4 * LAYERS * HIDDEN * (queries * before + queries * (queries + 1) / 2)

    p, z, y, k = regime.prompt, regime.trace, regime.answer, regime.traces
    prefill = 2 * body * p + attention(p, 0)
    decode = k * (2 * (body + head) * z + attention(z, p))
    tag = 1
    after = k * (z + tag + y) + tag + y
    scored = k * (z + tag + y) + y
    suffixes = k * attention(z + tag + y, p) + attention(tag + y, p)
    forward = prefill + 2 * body * after + suffixes + 2 * head * scored
    return {
        "sampling": regime.prompts * (prefill + decode),
        "training": regime.prompts * 3 * forward,
    }


def matrix_rate(threads: int) -> float:
    """Floating-point operations per second of float32 products of 2048 x 2048 matrices: the best
    of ten."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    best = 1e9
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


# -- All sides, taking turns -----------------------------------------------------------------------


class Side:
    """A process that trains when it is told to."""

    def __init__(self, name: str, regime: str, steps: int, threads: int) -> None:
        self.name, self.seconds, self.peak = name, [], 0.0
        order = [sys.executable, __file__, "--side", name, "--regime", regime]
        order += ["--runs", str(steps), "--threads", str(threads)]
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            order, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def step(self, counts: bool) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        heard = self._hear()
        self.peak = heard["peak_gb"]
        if counts:
            self.seconds.append(heard["seconds"])
        print(f"  {self.name}: {heard['seconds']:.2f} s, {self.peak:.2f} GB", file=sys.stderr)

    def stages(self) -> dict[str, Any]:
        """Of our side, which is done: mean seconds of a step by stage, and the share of it that is
        neither model nor sampling."""
        seconds = self._hear()["seconds"]
        step = seconds["step"]
        spent = sum(seconds[name] for name in ("objective", "records", "waiting", "other"))
        kept = {name: round(seconds[name], 3) for name in STAGES}
        return {"outside": round(spent / step, 4), "stages": {**kept, "step": round(step, 3)}}

    def result(self) -> dict[str, Any]:
        return {
            "seconds": round(statistics.median(self.seconds), 3),
            "range": [round(min(self.seconds), 3), round(max(self.seconds), 3)],
            "peak_gb": round(self.peak, 3),
        }


def compare(name: str, names: tuple[str, ...], runs: int, threads: int) -> dict[str, Any]:
    """One regime, all sides."""
    print(name, file=sys.stderr)
    rate = matrix_rate(threads)
    sides = [Side(side, name, runs + 1, threads) for side in names]
    for i in range(runs + 1):
        for side in sides:
            side.step(counts=i > 0)
    about = sides[0].stages() if names[0] == "ours" else {}
    for side in sides:
        side.process.wait()
    rate = max(rate, matrix_rate(threads))
    found: dict[str, Any] = {side.name: side.result() for side in sides}
    ours, others = found[names[0]], [found[n] for n in names[1:]]
    ours |= about
    if others:
        found["ratio"] = round(min(o["seconds"] for o in others) / ours["seconds"], 2)
        found["memory_ratio"] = round(ours["peak_gb"] / min(o["peak_gb"] for o in others), 3)
    work = flops(REGIMES[name])
    found["gflop"] = {part: round(count / 1e9, 1) for part, count in work.items()}
    found["matrix_gflop_per_second"] = round(rate / 1e9, 1)
    found["floor_seconds"] = round(sum(work.values()) / rate, 3)
    found["over_floor"] = round(ours["seconds"] / found["floor_seconds"], 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--regime", choices=REGIMES, help="only this one")
    parser.add_argument("--runs", type=int, default=3, help="steps that count, of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=SIDES, action="append", help="only these sides")
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write into {RESULTS.name}, beside regimes measured before",
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        run_side(given.side, REGIMES[given.regime], given.runs, given.threads)
        return
    found: dict[str, Any] = {}
    for name in [given.regime] if given.regime else REGIMES:
        sides = SIDES if name in COMPARED else ("ours",)
        sides = tuple(s for s in sides if not given.only or s in given.only)
        found[name] = compare(name, sides, given.runs, given.threads)
    if given.write:
        from native_reasoning.training.resume import machine

        versions = {name: version(name) for name in ("torch", "transformers", "trl")}
        about = {**machine(1), **versions, "runs": given.runs, "threads": given.threads}
        before = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
        text = json.dumps({**before, **found, "machine": about}, indent=2)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
