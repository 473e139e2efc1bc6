"""benchmarks/gpu.py to its end on the CPU, and without what a bare machine lacks."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Hides packages from whatever is imported after it.
HIDING = """
import importlib.machinery, runpy, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in ("datasets", "peft", "plotly", "rich", "trl")
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Finder
sys.argv = ["gpu.py", *sys.argv[1:]]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


def run(out, *order):
    done = subprocess.run(
        [sys.executable, *order, "--out", str(out)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stderr


def test_every_part_has_numbers(tmp_path):
    found, _ = run(tmp_path / "gpu.json", "benchmarks/gpu.py")
    assert {"device", "torch", "transformers", "cuda", "date"} <= found["machine"].keys()
    for name, case in found["a"].items():
        assert case.get("equal") or ("flex" in name and "not run" in case)
    ways = found["a"]["sdpa, float32, window"]
    assert ways.keys() == {
        *("plain rows", "shared", "packed", "rows", "samples", "equal"),
        *("decoding, shared prompt", "decoding, repeated cache"),
    }
    speeds = [case for name, case in found["b"].items() if name != "matrix products"]
    assert len(speeds) == 3  # ours, plain rows and TRL
    assert all(case["seconds"] > 0 and case["trace_tokens_per_second"] > 0 for case in speeds)
    assert len(found["c"]) == 3
    assert all(case["tokens_per_second"] > 0 for case in found["c"].values())
    assert found["d"]["killed and resumed"]["identical"]


def test_a_bare_machine_runs_all_but_the_trainer_and_is_told_what_to_bring(tmp_path):
    found, said = run(tmp_path / "gpu.json", "-c", HIDING, "c", "d")
    assert all(case["tokens_per_second"] > 0 for case in found["c"].values())
    error, why, fix = found["d"]["killed and resumed"]["not run"].splitlines()
    assert (error, why[:5], fix[:17]) == ("error: no rich", "why: ", "fix: pip download")
    assert error in said
