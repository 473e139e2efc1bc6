"""Is it true what ``nrt check --sample`` says of a model and its questions? Asked before training,
then trained.

    python benchmarks/headroom.py verdicts    # first, and committed before the next
    python benchmarks/headroom.py train
    python benchmarks/headroom.py table

``headroom.json`` beside this file has what came of it; what is there is not made again, so all
three go on where they were stopped. Models that are made for a pair lie in ``--out``
(runs/headroom). Pairs with a real model are named and need ``--models FOLDER`` with ``gemma3`` and
``smollm2`` in it: ``--pairs gemma-boxes,gemma-threes,smollm2-threes``.

*Verdict.* Of 32 questions with 8 traces each, at the settings of the runs; where it is "not
decided", of four times as many, as it says, up to 512.

*Training.* Two seeds of ``nrt-ws`` and of ``sft``, at equal steps; of "format first" also
``nrt-ws`` with the settings that the verdict names. 500 held-out questions, answers sampled.

*Rule*, written before all verdicts and runs here. Let B be the larger of the base's accuracy after
a trace and after none, and S that of ``sft``, a mean over its seeds. A run has *gained* if its
accuracy after a trace is at least 0.1 above both B and S; an arm has where both of its runs have.
Where answers cannot be compared, accuracy is the mean log-probability of a reference token, and
0.1 is 0.02. (The first text had three seeds, two of which had to gain. It became two when three
runs of *style* showed that the machine was too busy; nothing else had run.)

====================  =========================================================================
verdict               right if and only if
====================  =========================================================================
worth training        nrt-ws has gained
nothing to reinforce  it has not
nothing to learn      it has not, and B is at least 0.9 (-0.05 nats)
format first          with the settings that it names nrt-ws has gained; without them it has not,
                      or its mean is at least 0.05 (0.01 nats) lower
not decided           never
====================  =========================================================================

*Twice.* The thresholds of headroom.py had been chosen on other questions of most of the first
eleven pairs (``FIRST``). Their verdicts were committed, then they were trained: two of eleven were
wrong. *seldom*, as predicted: of 1,000 of its questions the best of eight traces has 0.175, and
the best of another question's 0.187, because a strange trace misleads this model into answers of
which it is sure. *tags*: a warm-up does not make it think. A control by the mean in place of the
best was tried then; it asks for fewer questions, sees *seldom* no better, and calls *largest* worth
training, so the rule stayed. The other pairs (``FRESH``) are new, and the rule was fixed before
them, but for what it advises where the limit cuts traces; their verdicts are committed before they
are trained.

The goal is seven of eight. Predictions for the first pairs, before anything: *seldom* wrong or not
decided, *largest* perhaps wrong, all others right. For the fresh pairs, before their verdicts by
this rule: *seldom-1* is wrong or not decided, *open* may be either, all others are right; of *cut*
the limit is said to be too short.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lab.families import EXPERIMENTAL
from lab.pretrain import Recipe, pretrain
from lab.tasks import DEMO, LONGEST, make_rows

from native_reasoning.config.recipe import make_config
from native_reasoning.demo import base_path
from native_reasoning.evaluation.held_out import summarise
from native_reasoning.training.headroom import ask, told
from native_reasoning.training.resume import machine
from native_reasoning.training.trainer import NRTTrainer

HERE = Path(__file__).parent
RESULT = HERE / "headroom.json"
SAMPLE, MOST, SEEDS = 32, 512, (0, 1)
#: Rows have these seeds: those that a verdict is about, those of a run (more its seed), held out.
ASKED, TRAINED, HELD_OUT = 5_000_003, 6_000_003, 7_000_003
#: By whether answers are compared: what a run has to gain, what is right already, and what a
#: warm-up has to bring.
BOUNDS = {True: (0.1, 0.9, 0.05), False: (0.02, -0.05, 0.01)}
Rows = Callable[[str, int, int], list[dict[str, str]]]
TINY: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_trace_length": 16,
    "max_answer_length": 20,
    "learning_rate": 5e-4,
    "warmup_steps": 0,
    "max_steps": 100,
    "eval_samples": 500,
    "save_strategy": "no",
    "record_traces": False,
    "diagnostics_steps": 0,
}
LONG = {"per_device_train_batch_size": 8, "max_trace_length": 24, "max_answer_length": 120}
REAL: dict[str, Any] = {
    **TINY,
    "bf16": True,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "max_trace_length": 40,
    "max_answer_length": 8,
    "learning_rate": 2e-6,
    "max_steps": 40,
    "eval_samples": 100,
}


@dataclass(frozen=True)
class Pair:
    """A model and its questions: ``base`` makes or finds the folder, given ``--out`` and
    ``--models``; ``rows`` takes split, number and seed."""

    base: Callable[[Path, Path], str]
    rows: Rows
    settings: dict[str, Any] = field(default_factory=dict)


# -- Models and questions --------------------------------------------------------------------------


def of_lab(name: str) -> Callable[[Path, Path], str]:
    """A base model of benchmarks/lab."""
    return lambda out, models: str(HERE / "lab" / "bases" / name)


def embedded(out: Path, models: Path) -> str:
    """The model of ``nrt demo``."""
    return str(base_path())


def taught(out: Path, models: Path) -> str:
    """The embedded model after a run of its own on the same family: it can do it already."""
    folder = out / "taught"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as nowhere:
            rows = family("short_answer")("train", 1600, 8_000_003)
            trainer = trainer_of(PAIRS["short"], str(base_path()), nowhere, rows, "nrt-ws", 9)
            trainer.train()
            trainer.save_model(str(folder))
    return str(folder)


def never_closed(out: Path, models: Path) -> str:
    """A model like the embedded one: 95 of 100 documents of its pre-training end inside their
    trace, so that it hardly knows the tag."""
    folder = out / "never-closed"
    if not folder.exists():
        families = tuple(replace(one, unanswered=0.95) for one in DEMO.values())
        part = folder.with_name("never-closed.part")
        pretrain(part, families, 0, Recipe(), LONGEST)
        part.rename(folder)
    return str(folder)


def family(name: str) -> Rows:
    """Questions of a family of the lab."""
    return lambda split, n, seed: make_rows(EXPERIMENTAL[name], split, n, seed)


def largest(split: str, n: int, seed: int) -> list[dict[str, str]]:
    """Questions about sums, with the largest digit in place of the sum's last: a running sum says
    nothing about it."""
    rows = make_rows(DEMO["short_answer"], split, n, seed)
    said = [max(word for word in row["question"].split() if word.isdigit()) for row in rows]
    pairs = zip(rows, said, strict=True)
    return [
        {**row, "answer": " ".join(d if w.isdigit() else w for w in row["answer"].split())}
        for row, d in pairs
    ]


def few_shot(make: Callable[[random.Random], tuple[str, str, str]]) -> Rows:
    """Questions behind four worked examples, for a model that only goes on with a text. ``make``
    returns a question, its worked solution and its answer."""

    def rows(split: str, n: int, seed: int) -> list[dict[str, str]]:
        shown = [make(random.Random(f"shown/{i}")) for i in range(4)]
        head = "".join(f"Question: {q}\nThink: {z}\nAnswer: {a}\n\n" for q, z, a in shown)
        taken = {q for q, _, _ in shown}
        if split == "train":  # held-out questions are drawn first, and left out of training
            taken |= {row["question"] for row in rows("heldout", 100, HELD_OUT)}
        found: dict[str, str] = {}
        rng = random.Random(f"{split}/{seed}")
        while len(found) < n:
            q, _, a = make(rng)
            text = f"{head}Question: {q}\nThink:"
            if q not in taken and text not in taken:
                found[text] = a
        return [{"question": text, "answer": a} for text, a in found.items()]

    return rows


def boxes(rng: random.Random) -> tuple[str, str, str]:
    """Boxes of pens, and a few more."""
    name = rng.choice(("Ann", "Ben", "Cora", "Dan", "Eve", "Finn", "Gail", "Hugo", "Ida"))
    a, b, c = (rng.randint(2, 9) for _ in range(3))
    text = f"{name} has {a} boxes with {b} pens each and {c} more pens. How many pens is that?"
    return text, f"{a} * {b} = {a * b}, {a * b} + {c} = {a * b + c}.", str(a * b + c)


def threes(rng: random.Random) -> tuple[str, str, str]:
    """The sum of three digits."""
    a, b, c = (rng.randint(1, 9) for _ in range(3))
    return (
        f"What is {a} + {b} + {c}?",
        f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}.",
        str(a + b + c),
    )


def real(name: str) -> Callable[[Path, Path], str]:
    """A model in ``--models``."""
    return lambda out, models: str(models / name)


_BOS = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
_TEXT = {**REAL, "boundary": "text", "boundary_text": "\nAnswer:"}
PAIRS = {
    "style": Pair(embedded, family("style_shift")),
    "short": Pair(embedded, family("short_answer")),
    "chance": Pair(of_lab("one_sum-0"), family("by_chance")),
    "some": Pair(of_lab("one_sum-0"), family("useful_03")),
    "seldom": Pair(of_lab("one_sum-0"), family("useful_01")),
    "blind": Pair(of_lab("one_sum-0"), family("longer")),
    "reads": Pair(of_lab("one_sum-1"), family("longer")),
    "long": Pair(of_lab("three_sums-1"), family("long"), LONG),
    "largest": Pair(embedded, largest),
    "taught": Pair(taught, family("short_answer")),
    "tags": Pair(
        embedded,
        family("short_answer"),
        {"boundary": "new", "think_open": "<plan>", "think_close": "</plan>"},
    ),
    "gemma-boxes": Pair(real("gemma3"), few_shot(boxes), {**_TEXT, "chat_template_path": "bos"}),
    "gemma-threes": Pair(real("gemma3"), few_shot(threes), {**_TEXT, "chat_template_path": "bos"}),
    "smollm2-threes": Pair(real("smollm2"), lambda *a: [
        {**row, "question": row["question"].rsplit("Question: ", 1)[1].removesuffix("\nThink:")}
        for row in few_shot(threes)(*a)
    ], {**REAL, "max_trace_length": 64}),
}  # fmt: skip
FIRST = [*PAIRS][:11]
PAIRS |= {
    "style-1": Pair(of_lab("demo-1"), family("style_shift")),
    "chance-4": Pair(of_lab("one_sum-4"), family("by_chance")),
    "blind-4": Pair(of_lab("one_sum-4"), family("longer")),
    "uncertain-4": Pair(of_lab("one_sum-4"), family("uncertain")),
    "seldom-1": Pair(of_lab("one_sum-1"), family("useful_01")),
    "largest-1": Pair(of_lab("demo-1"), largest),
    "long-2": Pair(of_lab("three_sums-2"), family("long_no_shift"), LONG),
    "cut": Pair(of_lab("demo-1"), family("short_answer"), {"max_trace_length": 3}),
    "open": Pair(never_closed, family("short_answer")),
    **{name: PAIRS.pop(name) for name in [*PAIRS] if name.startswith(("gemma", "smollm2"))},
}
FRESH = [*PAIRS][11:]
CHEAP = [name for name in PAIRS if not name.startswith(("gemma", "smollm2"))]


def trainer_of(
    pair: Pair,
    base: str,
    folder: str,
    rows: Sequence[dict[str, str]],
    preset: str,
    seed: int,
    **settings: Any,
) -> NRTTrainer:
    """A trainer of the pair; ``settings`` are in place of its own."""
    values = {**TINY, **pair.settings, "preset": preset, "seed": seed, **settings}
    if values.get("chat_template_path"):
        path = Path(folder) / "bos.jinja"
        path.write_text(_BOS, encoding="utf-8")
        values["chat_template_path"] = str(path)
    args = make_config(values, output_dir=f"{folder}/run")
    held_out = pair.rows("heldout", args.eval_samples, HELD_OUT)
    return NRTTrainer(base, args, list(rows), held_out)


# -- Before, and after -----------------------------------------------------------------------------


def verdict_of(name: str, out: Path, models: Path) -> dict[str, Any]:
    """What is said of the pair before training, and what the base can do."""
    pair, count = PAIRS[name], SAMPLE
    base = pair.base(out, models)
    with tempfile.TemporaryDirectory() as folder:
        rows = pair.rows("train", MOST, ASKED)
        trainer = trainer_of(pair, base, folder, rows, "nrt-ws", 0, max_steps=1)
        while True:
            found = ask(trainer, count, lambda text: None)
            if found["verdict"] != "not decided" or count >= MOST:
                break
            count *= 4
        base_numbers = measured(trainer)
    return {**rounded(found), "settings": found["settings"], "base": base_numbers}


def run_of(name: str, arm: str, seed: int, settings: dict[str, Any], *where: Path) -> Any:
    """What a run of an arm on the pair ends with."""
    pair = PAIRS[name]
    numbers = {**TINY, **pair.settings}
    count = numbers["max_steps"] * (
        numbers["per_device_train_batch_size"] * numbers["gradient_accumulation_steps"]
    )
    rows = pair.rows("train", min(count, 512 if name.endswith("threes") else count), TRAINED + seed)
    preset = arm.split("+")[0]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(pair, pair.base(*where), folder, rows, preset, seed, **settings)
        trainer.train()
        return measured(trainer)


def measured(trainer: NRTTrainer) -> dict[str, float]:
    """Of the held-out questions."""
    found = summarise(trainer.evaluator.outcomes(trainer.eval_groups))
    names = ("accuracy", "accuracy_no_think", "answer_logp", "answer_logp_no_think", "closed")
    return rounded({name: found[name] for name in (*names, "trace_length", "trace_entropy")})


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def arms_of(verdict: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms of a pair, with what they set."""
    arms: dict[str, dict[str, Any]] = {"nrt-ws": {}, "sft": {}}
    if verdict["verdict"] == "format first":
        arms["nrt-ws+set"] = verdict["settings"]
    return arms


# -- The rule --------------------------------------------------------------------------------------


def outcome(verdict: dict[str, Any], runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """What the rule makes of a pair: the means, whether nrt-ws gained, whether the verdict is
    right."""
    gain, can, lower = BOUNDS[verdict["compared"]]
    after, none = (
        ("accuracy", "accuracy_no_think")
        if verdict["compared"]
        else ("answer_logp", "answer_logp_no_think")
    )
    base = max(verdict["base"][after], verdict["base"][none])
    sft = fmean(max(run[after], run[none]) for run in runs["sft"])
    least = max(base, sft) + gain
    arms = {arm: [run[after] for run in made] for arm, made in runs.items() if arm != "sft"}
    gained = {arm: all(x >= least for x in values) for arm, values in arms.items()}
    means = {arm: fmean(values) for arm, values in arms.items()}
    alone = gained["nrt-ws"]
    right = {
        "worth training": alone,
        "nothing to reinforce": not alone,
        "nothing to learn": not alone and base >= can,
        "format first": gained.get("nrt-ws+set", False)
        and (not alone or means["nrt-ws+set"] - means["nrt-ws"] >= lower),
        "not decided": False,
    }[verdict["verdict"]]
    return {"base": base, "sft": sft, **means, "gained": alone, "right": right}


def table(result: dict[str, Any]) -> str:
    """The pairs in Markdown."""
    lines = [
        "| pair | verdict (questions) | head-room | base | sft | nrt-ws | as it says | right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, verdict in result["verdicts"].items():
        what = f"{verdict['verdict']} ({verdict['questions']})"
        head = f"| {name} | {what} | {told(verdict, 'headroom')}"
        runs = result["runs"].get(name, {})
        arms = arms_of(verdict)
        if any(str(seed) not in runs.get(arm, {}) for arm in arms for seed in SEEDS):
            lines.append(f"{head} | | | | | |")
            continue
        made = {arm: [runs[arm][str(seed)] for seed in SEEDS] for arm in arms}
        ends = outcome(verdict, made)
        numbers = [f"{ends[key]:.3f}" for key in ("base", "sft", "nrt-ws")]
        extra = f"{ends['nrt-ws+set']:.3f}" if "nrt-ws+set" in ends else ""
        mark = "right" if ends["right"] else "**wrong**"
        lines.append(f"{head} | {' | '.join([*numbers, extra, mark])} |")
    return "\n".join(lines)


# -- The command -----------------------------------------------------------------------------------


def main() -> None:
    """``verdicts``, ``train`` or ``table``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("verdicts", "train", "table"))
    parser.add_argument("--pairs", default=",".join(CHEAP), help="with commas between")
    parser.add_argument("--out", type=Path, default=Path("runs/headroom"))
    parser.add_argument("--models", type=Path, default=Path("models"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    where = (options.out, options.models)
    for name in options.pairs.split(","):
        if options.what == "verdicts" and name not in read()["verdicts"]:
            keep(verdict_of(name, *where), "verdicts", name)
        if options.what != "train":
            continue
        for arm, settings in arms_of(read()["verdicts"][name]).items():
            for seed in SEEDS:
                if str(seed) not in read()["runs"].get(name, {}).get(arm, {}):
                    keep(run_of(name, arm, seed, settings, *where), "runs", name, arm, str(seed))
    print(table(read()))


def read() -> dict[str, Any]:
    """What is there."""
    empty = {"machine": machine(1), "verdicts": {}, "runs": {}}
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else empty


def keep(value: Any, *keys: str) -> None:
    """Adds to what is there by now: another process may work on other pairs."""
    print(*keys, value.get("reason", value), file=sys.stderr, flush=True)
    result = cell = read()
    for key in keys[:-1]:
        cell = cell.setdefault(key, {})
    cell[keys[-1]] = value
    part = RESULT.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    part.replace(RESULT)


if __name__ == "__main__":
    main()
