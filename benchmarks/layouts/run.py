"""Which layout is fastest where: ``python benchmarks/layouts/run.py``.

Forward and backward of one prompt's rows on the model of benchmarks/speed.py, in each layout of
packing.py, two threads, median of five after one that is not counted, taking turns. *chosen* is
what the cost model takes; *loss* is how much longer that is than the fastest. results.json has it.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import speed

from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.scoring.packing import LAYOUTS, cheapest, pack
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


def main() -> None:
    """Prints and writes the table."""
    torch.set_num_threads(2)
    model, template = speed.policy(), make_template(speed.tokenizer())
    install_scoring(model)
    result: dict = {}
    for name, (prompt, lengths) in SHAPES.items():
        example = Example((("user", "?"),), "!", row_id=0, line=1)
        group = PromptGroup(example, tuple(range(10, 10 + prompt)), (*range(20, 35), 0))
        ids = tuple(tuple(range(100 + k, 100 + k + n)) for k, n in enumerate(lengths))
        traces = Traces(ids, (False,) * len(ids))
        seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        for turn in range(6):
            for layout in LAYOUTS:
                packed = pack([group], [traces], template, layouts=(layout,))
                began = time.perf_counter()
                model(score=packed.batch).sum().backward()
                if turn:
                    seconds[layout].append(time.perf_counter() - began)
        middle = {layout: statistics.median(times) for layout, times in seconds.items()}
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
    main()
