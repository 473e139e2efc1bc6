"""Which layout is fastest where: ``python benchmarks/layouts/run.py``.

Forward and backward of one prompt's rows on the model of benchmarks/speed.py, in each layout of
packing.py, two threads, median of five after one that is not counted, taking turns. *chosen* is
what the cost model takes; *loss* is how much longer that is than the fastest. results.json has it.

With ``--together`` one thread, and how many groups of 8 traces are forwarded at once: processor
seconds per group of a forward and backward, in together.json.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import speed

from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.scoring.packing import LAYOUTS, cheapest, pack, size_of, tokens_of
from native_reasoning.scoring.scorer import install_scoring
from native_reasoning.training.resume import machine

#: prompt tokens, tokens of each trace
SHAPES = {
    "even": (128, [64] * 8),
    "long prompt": (512, [64] * 8),
    "long traces": (32, [256] * 8),
    "one long trace": (64, [16] * 7 + [256]),
    "uneven": (128, [8, 16, 24, 32, 64, 96, 128, 256]),
    "many": (128, [32] * 32),
    "short": (32, [4] * 16),
}


def group_of(prompt: int, lengths: list[int], first: int = 0) -> tuple[PromptGroup, Traces]:
    """A prompt with traces of these lengths and an answer of 16 tokens; ``first`` sets it apart."""
    example = Example((("user", "?"),), "!", row_id=first, line=1)
    group = PromptGroup(example, tuple(range(10 + first, 10 + first + prompt)), (*range(20, 35), 0))
    ids = tuple(tuple(range(100 + k, 100 + k + n)) for k, n in enumerate(lengths))
    return group, Traces(ids, (False,) * len(ids))


def together() -> None:
    """Prints and writes what a group costs, by how many are forwarded at once."""
    torch.set_num_threads(1)
    model, template = speed.policy(), make_template(speed.tokenizer())
    install_scoring(model)
    most, result = 8, {}
    for name in ("short", "even"):
        pairs = [group_of(*SHAPES[name], first) for first in range(most)]
        seconds: dict[int, list[float]] = {}
        tokens = {}
        for turn in range(4):
            for count in (1, 2, 4, 8):
                began = time.process_time()
                for i in range(0, most, count):
                    groups, traces = zip(*pairs[i : i + count], strict=True)
                    packed = pack(groups, traces, template, layouts=("shared",))
                    model(score=packed.batch).sum().backward()
                sizes = [size_of(*pair, template) for pair in pairs[:count]]
                tokens[count] = tokens_of(sizes, "shared")
                if turn:
                    seconds.setdefault(count, []).append((time.process_time() - began) / most)
        result[name] = [
            {"groups": n, "tokens": tokens[n], "seconds_per_group": round(median(times), 4)}
            for n, times in seconds.items()
        ]
        print(name, json.dumps(result[name]))
    result["machine"] = machine(1)
    out = Path(__file__).with_name("together.json")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Prints and writes the table."""
    torch.set_num_threads(2)
    model, template = speed.policy(), make_template(speed.tokenizer())
    install_scoring(model)
    result: dict = {}
    for name, (prompt, lengths) in SHAPES.items():
        group, traces = group_of(prompt, lengths)
        seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for turn in range(6):
            for layout in LAYOUTS:
                packed = pack([group], [traces], template, layouts=(layout,))
                began = time.perf_counter()
                model(score=packed.batch).sum().backward()
                if turn:
                    seconds[layout].append(time.perf_counter() - began)
        middle = {layout: median(times) for layout, times in seconds.items()}
        suffixes = [(0, [1] * (n + 18)) for n in [*lengths, 0]]
        chosen = cheapest(LAYOUTS, [group.prompt_ids[:-1]], suffixes, speed.HIDDEN)
        result[name] = {
            **{layout: round(value, 4) for layout, value in middle.items()},
            "chosen": chosen,
            "loss": round(middle[chosen] / min(middle.values()) - 1, 3),
        }
        print(name, json.dumps(result[name]))
    result["machine"] = machine(1)
    out = Path(__file__).with_name("results.json")
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    together() if sys.argv[1:] == ["--together"] else main()
