"""The lab: ``python benchmarks/lab/run.py [EXPERIMENT ...] [--out benchmarks/lab]``.

Pre-trains tiny base models, trains each objective from them, several seeds each, and prints the
tables; without a name all experiments run, about two hours on two cores. What ``--out`` holds
already is not run again, so with ``--out benchmarks/lab`` it prints the committed results.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.experiments import EXPERIMENTS
from lab.runner import FULL, SMOKE, run_lab
from lab.tables import table


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=", ".join(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("runs/lab"), help="bases and results")
    parser.add_argument("--workers", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--full", action="store_true", help="every column of the tables")
    parser.add_argument("--smoke", action="store_true", help="two steps of one run of each")
    given = parser.parse_args()
    names = given.experiments or [*EXPERIMENTS]
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        parser.error(f"unknown experiment {unknown[0]!r}; one of: {', '.join(EXPERIMENTS)}")
    scale, out = FULL, given.out
    if given.smoke:  # nothing of it may pass for a result
        scale, out = SMOKE, out / "smoke"
    results = run_lab(
        names, out, scale, given.workers, say=lambda text: print(text, file=sys.stderr)
    )
    print("\n\n".join(f"## {name}\n\n{table(name, results[name], given.full)}" for name in names))


if __name__ == "__main__":
    main()
