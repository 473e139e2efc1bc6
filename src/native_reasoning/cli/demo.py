"""``nrt demo``: the embedded model, offline."""

from native_reasoning.cli.flags import Parsed, number
from native_reasoning.cli.output import quiet_libraries, say, show, show_json


def run(parsed: Parsed) -> int:
    """Runs the demo and prints its table."""
    seed = number(parsed.own, "seed") or 0
    quiet_libraries()
    from native_reasoning.demo.race import render, run_demo

    result = run_demo(seed=seed, out=parsed.own["out"], say=say)
    if parsed.own["json"]:
        show_json(result)
    else:
        show(render(result))
    return 0
