"""How far runs on several processes are from one: ``python benchmarks/ranks.py``.

Five steps of the small random model of tests/distributed_worker.py (gloo, CPU, one seed) in the
environment that ``accelerate launch`` makes of recipes/accelerate. *gradient*: that of step 1,
relative to one process; *weights*: how far the ends are apart, by the way that one process went.
Runs in bfloat16 are set against one process in bfloat16. Names choose cases; those of DeepSpeed
run only then (``make deepspeed-check`` installs it)::

    DS_ACCELERATOR=cpu PYTHONPATH=.deepspeed python benchmarks/ranks.py "ZeRO-2, 2" "ZeRO-3, 2"
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import launch  # noqa: E402

RUN = {"lab": False, "rows": 12, "preset": "nrt-ws", "max_steps": 5, "save_steps": 5}
BF16 = {"ACCELERATE_MIXED_PRECISION": "bf16"}
#: Name -> file of recipes/accelerate, processes, what the launcher adds, settings.
CASES: dict[str, tuple[str, int, dict[str, str], dict[str, Any]]] = {
    "DDP, 2": ("ddp", 2, {}, {}),
    "DDP, 4": ("ddp", 4, {}, {}),
    "FSDP2, 2": ("fsdp2", 2, {}, {}),
    "FSDP2, 4": ("fsdp2", 4, {}, {}),
    "FSDP2, 2, accumulation": (
        "fsdp2",
        2,
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ),
    "FSDP2, 2, activation checkpointing": ("fsdp2", 2, {}, {"activation_checkpointing": True}),
    "FSDP2, 2, its own checkpointing": ("fsdp2", 2, {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}),
    "FSDP2, 2, not resharded": ("fsdp2", 2, {"FSDP_RESHARD_AFTER_FORWARD": "false"}, {}),
    "bfloat16, 1": ("ddp", 1, {}, {"bf16": True}),
    "bfloat16, DDP, 2": ("ddp", 2, BF16, {}),
    "bfloat16, FSDP2, 2": ("fsdp2", 2, BF16, {}),
    "bfloat16, FSDP2, 2, accelerate's policy": ("fsdp2", 2, BF16, {"policy": "bf16"}),
    "ZeRO-2, 2": ("zero2", 2, {}, {}),
    "ZeRO-3, 2": ("zero3", 2, {}, {}),
}


def run(folder: Path, config: str, processes: int, more: dict, settings: dict) -> dict[str, Any]:
    """The first gradient of rank 0 (None where it cannot be seen), and the weights at both ends."""
    given = launch.launched
    launch.launched = lambda *args: {**given(*args), **more}
    try:
        launch.work(config, processes, {str(folder): {**RUN, **settings}})
    finally:
        launch.launched = given
    first, last = torch.load(folder / "weights-0.pt")
    return {"gradient": torch.load(folder / "gradient-0.pt"), "first": first, "last": last}


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, float | None]:
    """The two distances of the page's head."""
    gradient = other["gradient"]
    apart = None if gradient is None else gradient - one["gradient"]
    way = (one["last"] - one["first"]).norm()
    return {
        "gradient": None if apart is None else float(apart.norm() / one["gradient"].norm()),
        "weights": float((other["last"] - one["last"]).norm() / way),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        single = run(Path(place) / "one", "ddp", 1, {}, {})
        rough, found = single, dict[str, Any]()
        wanted = sys.argv[1:] or [n for n in CASES if not n.startswith("ZeRO")]
        for number, name in enumerate(wanted):
            case = CASES[name]
            other = run(Path(place) / str(number), *case)
            found[name] = compare(rough if name.startswith("bfloat16,") else single, other)
            if name == "bfloat16, 1":
                rough, found[name] = other, compare(single, other)
            print(f"{name:36} {found[name]}", flush=True)
    if sys.argv[1:]:  # beside what was measured before
        found = {**json.loads(RESULTS.read_text(encoding="utf-8")), **found}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
