"""The benchmarks' results for docs/performance.md, where the site is built (conf.py)."""

import json
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NAMES = {
    "short": "prompt 128, trace 64",
    "long-prompt": "prompt 512, trace 64",
    "long-trace": "prompt 32, trace 256",
    "off-policy": "prompt 128, trace 64, 8 updates on one rollout",
}
#: What was to be reached: time ratio, memory ratio.
GOALS = {"short": (5.0, 0.45), "long-prompt": (8.0, 0.40), "long-trace": (3.0, None)}
#: What was compared; the machine's words come from the results.
SETTING = """`python benchmarks/speed.py --json` trains a random Llama of 17.3 M parameters (hidden
256, 6 layers, vocabulary 49,152) on 4 prompts × 8 traces a step, all lengths forced, answers of 16
tokens, float32. TRL 1.16's GRPOTrainer has a reward function that scores the reference answer with
the policy; *tuned* is without gradient checkpointing. Ours also trains the answer, which TRL's does
not. {processor}, {threads} threads, torch {torch}, transformers {transformers}; {runs} steps of
each side, taking turns, after one that is not counted. Each side is a process of its own. The floor
is the counted arithmetic of a step, each token computed once, over the machine's rate at 2048 ×
2048 matrices, measured in the same run. In the off-policy setting 8 prompts are sampled at once and
trained on in 8 steps of one prompt. That row was measured when scores came off
the sampler's caches (commit 9aacaf2); since then they take a forward of their own, and the row has
not been measured again."""


#: What stands between a step and its floor.
WHY = """What stands between the two: while sampling, each token's products have few rows, and
drawing a number and attention move memory; in training, the part of the logits that is not kept is
computed twice, exponentials of every logit are taken, and each micro-batch makes gradients as large
as the table. With long traces TRL's own step has less to lose (prompts are short), so that the
ratio is bounded by how far TRL is from the floor. At prompt 128 the same command on earlier commits
of this work, at other hours, gave 5.0×, 4.9× and 4.7×: it was not brought safely to 5. The rows
with stages are from the last state of the head, the others from two commits before."""


def read(name: str) -> dict[str, Any]:
    """A benchmark's results, {} where it has none."""
    path = BENCHMARKS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows]]


def seconds(side: dict[str, Any]) -> str:
    """Median and range."""
    low, high = side["range"]
    return f"{side['seconds']:.2f} ({low:.2f}–{high:.2f})"


def beside_trl(found: dict[str, Any]) -> list[str]:
    """Times, then memory."""
    if not any(name in found for name in NAMES):
        return ["Not measured on a quiet machine yet."]
    shown = [name for name in NAMES if name in found]
    times, memory = [], []
    for name in shown:
        cell = found[name]
        goal, most = GOALS.get(name, (None, None))
        sides = [cell["trl"], cell["trl-tuned"], cell["ours"]]
        ratio = f"{cell['ratio']:.1f}×" + (f" (goal {goal:g}×)" if goal else "")
        floor = f"{cell['floor_seconds']:.2f}, {cell['over_floor']:.2f}×"
        times.append([NAMES[name], *map(seconds, sides), ratio, floor])
        part = f"{cell['memory_ratio']:.2f}" + (f" (goal {most:.2f})" if most else "")
        share = cell["ours"]["outside"]
        outside = "not measured" if share is None else f"{100 * share:.1f} %"
        memory.append([NAMES[name], *(f"{s['peak_gb']:.2f}" for s in sides), part, outside])
    header = ["", "TRL, defaults", "TRL, tuned", "ours"]
    return [
        "Seconds of a step (off-policy: of a window), median (range):",
        "",
        *table([*header, "faster TRL / ours", "floor, ours / floor"], times),
        "",
        "Peak memory of the process in GB, and the share of our step outside model and sampling:",
        "",
        *table([*header, "ours / leaner TRL", "outside"], memory),
    ]


def stages(found: dict[str, Any]) -> list[str]:
    """Where our time goes, and what the shortest possible would be."""
    shown = [name for name in NAMES if "stages" in found.get(name, {}).get("ours", {})]
    rows = []
    for name in shown:
        cell, rate = found[name], found[name]["matrix_gflop_per_second"]
        spent = cell["ours"]["stages"]
        train = spent["scoring"] + spent["backward"]
        least = [cell["gflop"][part] / rate for part in ("sampling", "training")]
        parts = (f"{spent['sampling']:.2f} ({least[0]:.2f})", f"{train:.2f} ({least[1]:.2f})")
        rows.append([NAMES[name], *parts, f"{spent['optimiser']:.2f}", f"{spent['step']:.2f}"])
    header = ["", "sampling (floor)", "forward and backward (floor)", "optimiser", "step"]
    return table(header, rows)


def growth(found: dict[str, Any]) -> list[str]:
    """Time from K = 4 to 16 at prompt 512."""
    if not {"long-prompt", "long-prompt-4", "long-prompt-16"} <= found.keys():
        return ["How time grows with K was not measured on a quiet machine yet."]
    few, many = (found[f"long-prompt-{k}"]["ours"]["seconds"] for k in (4, 16))
    middle = found["long-prompt"]["ours"]["seconds"]
    return [
        f"With K = 4, 8 and 16 traces at prompt 512 a step takes {few:.2f}, {middle:.2f} and "
        f"{many:.2f} s: {many / few:.2f}× from 4 to 16 (goal 3.0×)."
    ]


def page() -> str:
    """The whole page."""
    speed, data, layouts = (
        read("speed.json"),
        read("data/results.json"),
        read("layouts/results.json"),
    )
    lines = [
        "## Beside TRL",
        "",
        SETTING.format(**speed["machine"]) if "machine" in speed else "`python benchmarks/speed.py`",  # noqa: E501
        "",
        *beside_trl(speed),
        "",
        *growth(speed),
        "",
        "Where the seconds of our step go (means of the counted steps; the floor of each part in "
        "brackets):",
        "",
        *stages(speed),
        "",
        WHY,
        "",
        *on_gpu(read("gpu.json")),
        "",
        "## Where the time of a step is saved",
        "",
        "- Each prompt is forwarded once for its K traces, in sampling and in training; while "
        "sampling, all K rows read one copy of its keys.",
        "- One forward and one backward per rollout: the reward comes out of the training forward.",
        "- Log-probabilities come from pieces of the vocabulary; at most 64 MB of logits "
        "(512 MB on other devices than a CPU) are kept for the backward pass.",
        "- One uniform number per token, found in blocks of the distribution.",
        "- With several updates per rollout, scores are read off the sampler's caches.",
        "",
        "*Time of a step* in [the report](report.md) shows where the time of a run of yours goes.",
        "",
        "## Layouts of the training forward",
        "",
        "`python benchmarks/layouts/run.py`: seconds of forward and backward of one prompt's rows "
        "with the model above, two threads, median of five; *chosen* is what the cost model takes.",
        "",
        *table(
            ["rows", "shared", "packed", "plain rows", "chosen", "slower than the fastest"],
            [
                [name, *(f"{cell[x]:.3f}" for x in ("shared", "packed", "rows")), cell["chosen"],
                 f"{100 * cell['loss']:.0f} %"]
                for name, cell in layouts.items() if name != "machine"
            ],
        ),
        "",
        "## Data",
        "",
        f"`python benchmarks/data/run.py --model SMOLLM2`: {data['first']['rows']:,} rows of chat "
        f"turns ({data['file_bytes'] / 1e6:.0f} MB, {data['first']['tokens'] / 1e6:.0f} million "
        f"tokens) are read, checked and encoded in {data['first']['seconds']:.0f} s on "
        f"{data['machine']['cores']} cores, with {data['first']['peak_rss_gb']:.2f} GB in all "
        f"processes together; with the ids in the cache in "
        f"{data['from_cache']['seconds']:.1f} s. One run.",
    ]  # fmt: skip
    memory = read("memory/results.json")
    if memory:
        lines += ["", *peaks(memory)]
    return "\n".join(lines) + "\n"


def on_gpu(found: dict[str, Any]) -> list[str]:
    """What benchmarks/gpu.py found, which is nothing where there was no GPU."""
    if not found:
        return ["No GPU was used: the code for GPUs was not run on one."]
    here = found["machine"]
    lines = [
        "## Measured on a GPU",
        "",
        f"{here['device']}, CUDA {here['cuda']}, torch {here['torch']}, transformers "
        f"{here['transformers']}, {here['date']}. *Share*: of the speed of large bf16 matrix "
        "products, measured in the same run.",
    ]
    for part in "abcd":
        cells = {name: x for name, x in found.get(part, {}).items() if name != "matrix products"}
        rows = [[name, *(_cell(x, column) for column in SHOWN[part])] for name, x in cells.items()]
        lines += ["", *table(["", *SHOWN[part].values()], rows)] if rows else []
    return lines


#: Columns of each part of benchmarks/gpu.py, by the names of its numbers.
SHOWN = {
    "a": {"equal": "as plain rows"},
    "b": {
        "seconds": "seconds",
        "trace_tokens_per_second": "trace tokens per second",
        "share": "share",
        "peak_gb": "peak GB",
    },
    "c": {
        "tokens_per_second": "tokens per second",
        "milliseconds_per_token": "ms per token",
        "syncs": "waits per token",
        "share": "share",
        "peak_gb": "peak GB",
    },
    "d": {"equal": "as a whole run", "largest_difference": "largest difference of a weight"},
}


def _cell(found: dict[str, Any], column: str) -> str:
    if "not run" in found or "failed" in found:
        return found.get("not run", "failed").splitlines()[0]
    value = found.get(column, "")
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"{value}"


def peaks(memory: dict[str, Any]) -> list[str]:
    """What training takes at its peak."""
    cells = [[name, f"{cell['measured'] / 1e9:.2f}"] for name, cell in memory.items()]
    return [
        "## Memory",
        "",
        "`python benchmarks/memory/run.py --model SMOLLM2`: the peak resident set of two steps in "
        "GB, each setting in a process of its own, on the model above (*100M*: a hundred million "
        "parameters, *real*: SmolLM2-135M). One run. `nrt train ... --dry-run` measures yours.",
        "",
        *table(["setting", "peak"], cells),
    ]
