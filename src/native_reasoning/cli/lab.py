"""``nrt lab``: controlled comparisons on tiny base models, offline."""

from pathlib import Path

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import quiet_libraries, say, show, show_json
from native_reasoning.config.errors import ConfigError, did_you_mean


def run(parsed: Parsed) -> int:
    """Runs what is missing of the experiments and prints their tables."""
    from native_reasoning.demo.experiments import EXPERIMENTS

    if parsed.positional is not None and parsed.positional not in EXPERIMENTS:
        raise ConfigError(
            f"unknown experiment {parsed.positional!r}"
            f"{did_you_mean(parsed.positional, EXPERIMENTS)}",
            why="the lab runs experiments of its own",
            fix=f"one of: {', '.join(EXPERIMENTS)}; without a name all of them run",
        )
    names = [parsed.positional] if parsed.positional else [*EXPERIMENTS]
    out = Path(parsed.own["out"] or "runs/lab")
    workers = number(parsed.own, "workers") or 2
    quiet_libraries()
    from native_reasoning.demo.runner import FULL, SMOKE, run_lab
    from native_reasoning.demo.tables import table

    scale = FULL
    if parsed.own["smoke"]:  # nothing of it may pass for a result
        scale, out = SMOKE, out / "smoke"
    results = run_lab(names, out, scale, workers=workers, say=say)
    if parsed.own["json"]:
        show_json({"out": str(out), "results": results})
    else:
        full = bool(parsed.own["full"])
        texts = [f"## {name}\n\n{table(name, results[name], full)}" for name in names]
        show("\n\n".join(texts))
    return 0
