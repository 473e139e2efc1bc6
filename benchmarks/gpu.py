"""What can be checked and measured on one accelerator: ``python benchmarks/gpu.py``, or some of its
parts, ``python benchmarks/gpu.py a c``.

a   Every fast path gives the log-probabilities and gradients of plain rows, each forwarded alone:
    layouts of the training forward, decoders, samples; float32 and bf16, sdpa and flex attention.
b   One training step (forward, backward, AdamW) of one prompt with K = 8 given traces, beside
    plain rows with whole logits, and beside TRL's step without its rollout where TRL is installed.
c   Sampling, with a look for stops after each token and after several. There are no CUDA graphs:
    the rows' cache grows with each token and their number shrinks, and a graph allows neither.
d   A run that is killed by SIGKILL goes on and ends as one that was not.

Models are random and made here, in the shapes of Qwen3 0.6B and 4B; without a CUDA device they are
tiny, and so are all lengths. Weights are float32, bf16 is autocast, as in training. Nothing comes
from a network. a, b and c need torch, transformers, numpy and this checkout; d needs the trainer.
A case that would begin after its part's time is written down as not run. Each result is written as
soon as it is there: into gpu.json beside this script, without a CUDA device only into ``--out``.

*share* is model FLOP/s over those of a large bf16 matrix product, measured here (PaLM, Chowdhery et
al. 2022, appendix B, has the device's peak in its place). Model FLOPs, with N weights and d = heads
times their width, are for each trained token 6 N + 12 · layers · d · (positions that it sees), and
a third of that where there is no backward. The table of the vocabulary counts where a token is
scored or sampled. Tokens are those that a path forwards, so a path that repeats the prompt is not
slower by this number; *trace_tokens_per_second* says which is.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]


def lacking(what: str, without: str) -> str:
    """Three lines about what is not there."""
    wheels = "rich 'transformers>=5.23,<6'"
    return (
        f"error: {what}\nwhy: the package imports it; {without}\n"
        f"fix: pip download {wheels} --dest wheels, on a machine with a network and the same "
        f"Python, and here pip install --no-index --find-links wheels {wheels}"
    )


try:
    import speed
    import torch
    from torch import Tensor
    from torch.nn.utils.rnn import pad_sequence
    from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config, TrainerCallback

    from native_reasoning.data.rows import Example, PromptGroup, Traces
    from native_reasoning.data.template import Template, make_template
    from native_reasoning.model.forward import inference, padded
    from native_reasoning.objective.credit import preset_objective
    from native_reasoning.objective.losses import group_loss
    from native_reasoning.objective.types import Scores
    from native_reasoning.rollout.engine import NoiseKey, Sampling
    from native_reasoning.rollout.hf import HFEngine, decoder_of
    from native_reasoning.rollout.noise import pick, uniforms
    from native_reasoning.scoring import head
    from native_reasoning.scoring.packing import LAYOUTS
    from native_reasoning.scoring.scorer import Scorer, install_scoring, rounding_of
except ImportError as error:
    raise SystemExit(lacking(str(error), "no part runs without")) from None

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
#: Seconds after which no case of a part begins.
SECONDS = {"a": 110, "b": 150, "c": 90, "d": 60}
#: Mean nats, and relative distance of gradients, by which float32 may be off.
BOUND = {"nats": 2e-4, "gradient": 1e-3}


@dataclass(frozen=True)
class Shape:
    """A Qwen3's widths; with a ``window``, in tokens, it is a Mistral's."""

    hidden: int
    layers: int
    heads: int
    key_heads: int
    mlp: int
    width: int = 128
    vocabulary: int = 151_936
    window: int | None = None


TINY = Shape(64, 2, 4, 2, 128, width=32, vocabulary=512)
SHAPES = {"0.6B": Shape(1024, 28, 16, 8, 3072), "4B": Shape(2560, 36, 32, 8, 9728)}
SHAPES = SHAPES if CUDA else {"tiny": TINY}
#: Tokens of prompt and trace; traces of a prompt and tokens of an answer.
LENGTHS = [(p, z) for p in (512, 2048) for z in (256, 1024)] if CUDA else [(24, 8)]
TRACES, ANSWER = (8, 16) if CUDA else (3, 4)
#: Prompts that are sampled for at once, and tokens of each trace.
SAMPLED, DRAWN = ((1, 8), 128) if CUDA else ((2,), 12)


def policy(shape: Shape, attention: str = "sdpa") -> Any:
    """A random model in float32 on the device."""
    window = {} if shape.window is None else {"sliding_window": shape.window}
    config = (MistralConfig if window else Qwen3Config)(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        head_dim=shape.width, intermediate_size=shape.mlp, max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=1, **window,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(DEVICE):
        made = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention
        )
    install_scoring(made)
    return made


def template_of(shape: Shape) -> Template:
    """One token a word."""
    speed.VOCABULARY = shape.vocabulary
    return make_template(speed.tokenizer())


def words(count: int, seed: int) -> tuple[int, ...]:
    """Ids of words, none of which ends anything."""
    draw = random.Random(seed)
    return tuple(draw.randrange(9, 500) for _ in range(count))


def question(prompt: Sequence[int], row: int = 0) -> PromptGroup:
    example = Example((("user", "?"),), "!", row_id=row, line=1)
    return PromptGroup(example, tuple(prompt), (*words(ANSWER - 1, 7 + row), 0))


def arithmetic(dtype: torch.dtype) -> Any:
    return nullcontext() if dtype == torch.float32 else torch.autocast(DEVICE.type, dtype)


def scorer_of(template: Template, shape: Shape, dtype: torch.dtype, *layouts: str) -> Scorer:
    return Scorer(template, DEVICE, 1.0, layouts, rounding_of(dtype), shape.hidden)


def plain(
    model: Any, template: Template, group: PromptGroup, traces: Traces, together: bool = False
) -> Scores:
    """A group's scores from whole rows and whole logits: each row alone, or all in one batch."""
    first, tag = len(group.prompt_ids), len(template.boundary.close_ids)
    pairs = [(template.empty_trace(), True), *zip(traces.ids, traces.closed, strict=True)]
    before = [template.answer_prompt(group.prompt_ids, *pair) for pair in pairs]
    rows, found = [[*ids, *group.answer_ids] for ids in before], list[Tensor]()
    for batch in [rows] if together else [[row] for row in rows]:
        ids, mask = padded(batch).to(DEVICE), padded([[1] * len(row) for row in batch]).to(DEVICE)
        options = {"attention_mask": mask if together else None, "use_cache": False}
        out = model(input_ids=ids, logits_to_keep=ids.shape[1] - first + 1, **options)
        logits = out.logits[:, :-1, : template.vocabulary].float()
        found += logits.gather(-1, ids[:, first:, None])[..., 0] - logits.logsumexp(-1)
    sampled, forced, answers = [], [], []
    for logps, (ids, closed), start in zip(found, pairs, before, strict=True):
        sampled.append(logps[: len(ids)])
        forced.append(logps[len(ids) :][:tag].sum() * (not closed))
        answers.append(logps[len(start) - first :][: len(group.answer_ids)])
    return Scores(
        trace=pad_sequence(sampled[1:], batch_first=True),
        trace_mask=pad_sequence([x.new_ones(len(x)).bool() for x in sampled[1:]], batch_first=True),
        answer=torch.stack(answers[1:]),
        baseline=answers[0],
        forced_tag=torch.stack(forced[1:]),
        closed=torch.tensor(traces.closed, device=DEVICE),
    )


# -- a: is it the same? ----------------------------------------------------------------------------


def numbers(scores: Sequence[Scores]) -> Tensor:
    """All log-probabilities of groups, flat, those of traces first."""
    parts = [s.trace[s.trace_mask] for s in scores]
    parts += [x.flatten() for s in scores for x in (s.answer, s.baseline, s.forced_tag)]
    return torch.cat(parts).float()


def both(model: Any, dtype: torch.dtype, score: Callable[[], list[Scores]]) -> Sequence[Tensor]:
    """Log-probabilities, and the gradient of their weighted sum, flat."""
    model.zero_grad()
    with arithmetic(dtype):
        found = numbers(score())
    (torch.linspace(-1, 1, len(found), device=DEVICE) * found).sum().backward()
    return found.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def decoded(model: Any, share: bool, groups: Any, rows: Sequence[tuple[int, ...]]) -> Tensor:
    """Log-probabilities of the traces' tokens, which a decoder is given one after the other."""
    decoder, found = decoder_of(model, share), []
    decoder.start([g.prompt_ids for g in groups], len(rows) // len(groups))
    for t in range(max(map(len, rows))):
        tokens = torch.tensor([ids[min(t, len(ids) - 1)] for ids in rows], device=DEVICE)
        found.append(decoder.logits.float().log_softmax(-1)[range(len(rows)), tokens])
        decoder.advance(tokens)
    return torch.cat([x[: len(ids)] for x, ids in zip(torch.stack(found, 1), rows, strict=True)])


def samples(model: Any, template: Template, prompts: Any) -> dict[str, Any]:
    """Shares of samples that are those of a look after each token, and of tokens that plain
    forwards give; a number that rounding moves over a boundary gives another token."""
    plan, key, rows = Sampling(4, 24), NoiseKey(0, 0), range(len(prompts))

    def sample(every: int) -> Any:
        engine = HFEngine(model, template.stop_trace, template.vocabulary, look_every=every)
        stop = lambda ids: "closed" if ids[-1] % 16 == 0 else None  # noqa: E731
        return [s for group in engine.sample(prompts, rows, plan, key, stop) for s in group]

    found, equal = sample(8), list[bool]()
    for r, sample_of in enumerate(found):
        prompt, ids = prompts[r // 4], torch.tensor(sample_of.ids, device=DEVICE)
        whole = torch.tensor([[*prompt, *sample_of.ids]], device=DEVICE)
        with inference(model):
            logits = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 : -1]
        noise = torch.from_numpy(uniforms(0, 0, 0, r // 4, r % 4, len(ids))).to(DEVICE)
        equal += (pick(logits[:, : template.vocabulary], plan, noise) == ids).tolist()
    looks = statistics.mean(float(x == y) for x, y in zip(found, sample(1), strict=True))
    plain_too = statistics.mean(map(float, equal))
    return {"looks": looks, "plain": plain_too, "equal": min(looks, plain_too) >= 0.95}


def exactness(shape: Shape, attention: str, dtype: torch.dtype) -> dict[str, Any]:
    """How far each way is from plain rows in float32: *nats* in the mean, *gradient* relatively. In
    bf16 twice as far as plain rows in bf16 counts as equal."""
    model, template = policy(shape, attention), template_of(shape)
    with torch.no_grad():  # wider than at initialisation, so that probabilities differ
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    start, close = words(20, 1), template.boundary.close_ids
    groups = [question((*start, *words(n, n)), n) for n in (40, 9)]  # longer than the window
    ids = [words(20, 3), (*words(5, 4), *close), words(1, 5)], [words(7, 6), close, words(12, 8)]
    traces = [Traces(tuple(some), (False, True, False)) for some in ids]

    def alone() -> list[Scores]:
        return [plain(model, template, *pair) for pair in zip(groups, traces, strict=True)]

    exact, slope = both(model, torch.float32, alone)

    def off(found: Tensor, gradient: Tensor | None = None) -> dict[str, Any]:
        nats = {"nats": (found - exact[: len(found)]).abs().mean().item()}
        if gradient is None:
            return nats
        return {**nats, "gradient": ((gradient - slope).norm() / slope.norm()).item()}

    found = {"plain rows": off(*both(model, dtype, alone))}
    bound = {name: 2 * far + BOUND[name] for name, far in found["plain rows"].items()}
    for layout in LAYOUTS:
        if layout == "packed" and attention == "flex_attention":
            continue  # it takes no mask of four dimensions, and capabilities.py leaves it out
        fast = partial(scorer_of(template, shape, dtype, layout), model, groups, traces)
        few = {"cpu": 2**15, "other": 2**15}  # the head in pieces, of which some are kept
        with patch.dict(head.PIECE, few), patch.dict(head.KEPT, few):
            found[layout] = off(*both(model, dtype, fast))
    for name, share in (("decoding, shared prompt", True), ("decoding, repeated cache", False)):
        with inference(model), arithmetic(dtype):
            found[name] = off(decoded(model, share, groups, [*ids[0], *ids[1]]))
    for way in found.values():
        way["equal"] = all(far <= bound[name] for name, far in way.items())
    if dtype == torch.float32:
        found["samples"] = samples(model, template, [g.prompt_ids for g in groups])
    return {**found, "equal": all(way["equal"] for way in found.values())}


def part_a(report: "Report") -> None:
    for attention in ("sdpa", "flex_attention"):
        for dtype in (torch.float32, torch.bfloat16):
            for name, shape in {"whole": TINY, "window": replace(TINY, window=32)}.items():
                case = f"{attention}, {str(dtype).removeprefix('torch.')}, {name}"
                if attention == "flex_attention" and not CUDA:
                    report.add("a", case, {"not run": "flex attention trains on CUDA alone"})
                else:
                    report.case("a", case, partial(exactness, shape, attention, dtype))


# -- b and c: how fast? ----------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any]) -> float:
    """With all that the device still has to do."""
    began = time.perf_counter()
    work()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matrix_rate() -> float:
    """FLOP/s of the device's products of large bf16 matrices: the median of ten."""
    size = 8192 if CUDA else 256
    a = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    return 2 * size**3 / statistics.median([seconds_of(lambda: a @ a) for _ in range(11)][1:])


def flops(model: Any, spans: Sequence[tuple[int, int]], scored: int) -> float:
    """Those of a forward over ``spans``, (tokens, tokens before them); ``scored`` meet the head."""
    c, table = model.config, model.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in model.parameters()) - table
    seen = sum(n * before + n * (n + 1) / 2 for n, before in spans)
    width = c.num_hidden_layers * c.num_attention_heads * c.head_dim
    return 2 * (weights * sum(n for n, _ in spans) + table * scored) + 4 * width * seen


def memory() -> dict[str, float]:
    """The peak since it was asked last."""
    if not CUDA:
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gb": round(peak, 2)}


def step(
    model: Any, shape: Shape, template: Template, lengths: tuple[int, int], path: str, rate: float
) -> dict[str, Any]:
    """A training step on one prompt with given traces of the full length: the median of three."""
    prompt, trace = lengths
    group = question(words(prompt, 1))
    traces = Traces(tuple(words(trace, 2 + k) for k in range(TRACES)), (False,) * TRACES)
    objective = preset_objective("nrt-ws")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-6, fused=CUDA)
    ours = scorer_of(template, shape, torch.bfloat16, *LAYOUTS)

    def train() -> None:
        with arithmetic(torch.bfloat16):
            if path == "ours":
                (scores,) = ours(model, [group], [traces])
            else:
                scores = plain(model, template, group, traces, together=True)
        (group_loss(scores, objective(scores), objective).total() / TRACES).backward()
        optimizer.step()
        optimizer.zero_grad()

    memory()
    try:
        seconds = statistics.median([seconds_of(train) for _ in range(4)][1:])
    finally:
        optimizer.zero_grad()
    tail = len(template.boundary.close_ids) + len(template.gap_ids) + ANSWER
    rows = [trace + tail] * TRACES + [tail]
    spans = [(prompt - 1, 0), *((n, prompt - 1) for n in rows)]
    if path == "plain":
        spans = [(prompt - 1 + n, 0) for n in rows]
    return {
        "seconds": round(seconds, 4),
        "trace_tokens_per_second": round(TRACES * trace / seconds),
        "share": round(3 * flops(model, spans, sum(rows)) / seconds / rate, 4),
        **memory(),
    }


def trl_step(model: Any, template: Template, lengths: tuple[int, int]) -> dict[str, Any]:
    """Forward and backward of GRPOTrainer's second step, without its rollout and its optimiser;
    the peak of memory is with both."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    took: dict[str, list[float]] = {"training_step": [], "_prepare_inputs": []}

    def clocked(name: str, work: Callable[..., Any], *given: Any) -> Any:
        out: list[Any] = []
        took[name].append(seconds_of(lambda: out.append(work(*given))))
        return out[0]

    row = {"prompt": " ".join(f"w{i}" for i in words(lengths[0] - 1, 1))}
    memory()
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=2, num_generations=TRACES, bf16=True, use_cpu=not CUDA,
            per_device_train_batch_size=TRACES, gradient_accumulation_steps=1, save_strategy="no",
            max_completion_length=lengths[1], activation_checkpointing=False, report_to="none",
            generation_kwargs={"eos_token_id": None}, learning_rate=1e-6, disable_tqdm=True,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model,
            reward_funcs=lambda completions, **rest: [*map(float, range(len(completions)))],
            args=args,
            train_dataset=Dataset.from_list([row] * 2 * TRACES),
            processing_class=template.tokenizer,
        )
        for name in took:
            setattr(trainer, name, partial(clocked, name, getattr(trainer, name)))
        trainer.train()
    seconds = took["training_step"][-1] - took["_prepare_inputs"][-1]
    speed_of = round(TRACES * lengths[1] / seconds)
    return {"seconds": round(seconds, 4), "trace_tokens_per_second": speed_of, **memory()}


def part_b(report: "Report") -> None:
    rate = matrix_rate()
    report.add("b", "matrix products", {"tflop_per_second": round(rate / 1e12, 3)})
    for name, shape in SHAPES.items():
        model, template = None if report.late("b") else policy(shape).train(), template_of(shape)
        for lengths in LENGTHS:
            case = f"{name}, prompt {lengths[0]}, traces of {lengths[1]}"
            for path in ("ours", "plain"):
                work = partial(step, model, shape, template, lengths, path, rate)
                report.case("b", f"{case}, {path}", work)
        if find_spec("trl"):
            case = f"{name}, prompt {LENGTHS[0][0]}, traces of {LENGTHS[0][1]}, TRL"
            report.case("b", case, partial(trl_step, model, template, LENGTHS[0]))


def drawing(
    model: Any, template: Template, prompts: int, share: bool, every: int, rate: float
) -> dict[str, Any]:
    """Traces that run to their limit but for a rare end. *syncs*: how often in a token's time the
    host waits for the device."""
    before, plan = LENGTHS[0][0], Sampling(TRACES, DRAWN)
    ids, counts = [words(before, i) for i in range(prompts)], list[int]()
    engine = HFEngine(
        model, template.stop_trace, template.vocabulary, share=share, look_every=every,
        autocast=partial(arithmetic, torch.bfloat16),
    )  # fmt: skip

    def sample() -> None:
        found = engine.sample(ids, range(prompts), plan, NoiseKey(0, 0), engine.stop)
        counts.append(sum(len(s.ids) for group in found for s in group))

    memory()
    seconds = [seconds_of(sample) for _ in range(2)][1]
    spans = [(before, 0)] * prompts + [(DRAWN, before)] * prompts * TRACES
    peak, syncs = memory(), {}
    if CUDA:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            sample()
            torch.cuda.set_sync_debug_mode("default")
        found = sum("synchronizing" in str(warning.message) for warning in heard)
        syncs = {"syncs": round(found / DRAWN, 3)}
    return {
        "tokens_per_second": round(counts[-1] / seconds),
        "milliseconds_per_token": round(1000 * seconds / DRAWN, 2),
        "share": round(flops(model, spans, counts[-1]) / seconds / rate, 5),
        **peak,
        **syncs,
    }


def part_c(report: "Report") -> None:
    rate = matrix_rate()
    for name, shape in SHAPES.items():
        model, template = None if report.late("c") else policy(shape), template_of(shape)
        for prompts in SAMPLED:
            for share, every in ((True, 1), (True, 8), (False, 8)):
                way = "shared prompt" if share else "repeated cache"
                case = f"{name}, {prompts * TRACES} rows, {way}, a look every {every}"
                work = partial(drawing, model, template, prompts, share, every, rate)
                report.case("c", case, work)


# -- d: does it go on? -----------------------------------------------------------------------------


class Kill(TrainerCallback):
    """Ends the process between the backward and the update of step ``step`` (from 0)."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(folder: str, kill_in: int = -1) -> dict[str, Tensor]:
    """The weights after four steps, those that ``folder`` has among them."""
    from safetensors.torch import load_file

    from native_reasoning.config.nrt_config import NRTConfig
    from native_reasoning.training.trainer import NRTTrainer

    speed.VOCABULARY = TINY.vocabulary
    args = NRTConfig(
        output_dir=folder, max_steps=4, save_steps=1, num_generations=4, max_trace_length=8,
        gradient_accumulation_steps=2, learning_rate=1e-3, use_cpu=not CUDA, bf16=CUDA,
    )  # fmt: skip
    rows = speed.rows(speed.Regime(12, 8, answer=4), 2)
    made = {"processing_class": speed.tokenizer(), "callbacks": [Kill(kill_in)]}
    trainer = NRTTrainer(policy(TINY).cpu(), args, rows, **made)
    trainer.train(resume_from_checkpoint=any(Path(folder).glob("checkpoint-*")))
    return load_file(f"{folder}/checkpoint-4/model.safetensors")


def resumed() -> dict[str, Any]:
    """The weights of a killed run that went on, beside those of a whole one."""
    with tempfile.TemporaryDirectory() as place:
        whole, killed = train(f"{place}/whole"), f"{place}/killed"
        order = [sys.executable, __file__, "--kill", killed]
        ended = subprocess.run(order, capture_output=True, text=True, cwd=ROOT)
        if ended.returncode != -signal.SIGKILL:
            raise RuntimeError(f"exit code {ended.returncode}: {ended.stderr[-200:]}")
        again = train(killed)
    off = max((whole[name] - again[name]).abs().max().item() for name in whole)
    return {"largest_difference": off, "identical": off == 0, "equal": off <= 1e-5}


def part_d(report: "Report") -> None:
    lacks = [] if find_spec("rich") else ["rich"]
    if tuple(map(int, version("transformers").split(".")[:2])) < (5, 23):
        lacks.append(f"transformers 5.23 (here {version('transformers')})")
    if lacks:
        said = lacking(f"no {' and no '.join(lacks)}", "parts a, b and c run without")
        report.add("d", "killed and resumed", {"not run": said})
        print(said, file=sys.stderr)
    else:
        report.case("d", "killed and resumed", resumed)


# -- all of it -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The device, and what its numbers depend on."""
    found = {"device": torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU"}
    if CUDA and shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(ask, capture_output=True, text=True).stdout.split("\n")[0]
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {**found, "cuda": torch.version.cuda, **versions, "date": date.today().isoformat()}


class Report:
    """Results by part and case, written as they come; of another device nothing is kept."""

    def __init__(self, out: Path | None) -> None:
        self.out, self.ends, here = out, dict[str, float](), machine()
        found = json.loads(out.read_text("utf-8")) if out and out.is_file() else {}
        same = found.get("machine", {}).get("device") == here["device"]
        self.found = {**(found if same else {}), "machine": here}

    def late(self, part: str) -> bool:
        """Whether the part's time is over; it begins when this is asked first."""
        now = time.perf_counter()
        return now > self.ends.setdefault(part, now + SECONDS[part])

    def case(self, part: str, name: str, work: Callable[[], dict[str, Any]]) -> None:
        found: dict[str, Any] = {"not run": "out of time"}
        if not self.late(part):
            try:
                found = work()
            except torch.OutOfMemoryError:
                found = {"not run": "out of memory"}
            except Exception as error:  # the other cases go on
                found = {"failed": f"{type(error).__name__}: {error}"}
        self.add(part, name, found)

    def add(self, part: str, name: str, found: dict[str, Any]) -> None:
        self.found[part][name] = found
        print(f"{part}  {name}: {json.dumps(found)}", flush=True)
        if self.out:
            beside = self.out.with_suffix(".part")
            beside.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
            beside.replace(self.out)


PARTS = {"a": part_a, "b": part_b, "c": part_c, "d": part_d}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("parts", nargs="*", help="a, b, c, d; default: all")
    results = Path(__file__).with_suffix(".json") if CUDA else None
    parser.add_argument("--out", type=Path, default=results, help="the JSON of the results")
    parser.add_argument("--kill", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kill:
        train(given.kill, 2)
    report, wrong = Report(given.out), list[str]()
    for part in given.parts or PARTS:
        report.found[part] = {}
        PARTS[part](report)
        cases = report.found[part].items()
        wrong += [f"{part} {n}" for n, x in cases if "failed" in x or not x.get("equal", True)]
    if wrong:
        raise SystemExit("not right: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
