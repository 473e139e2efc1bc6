"""What ``nrt train`` and ``nrt eval`` tell at the end: tables for people, dicts for programs."""

from collections.abc import Mapping
from typing import Any

from native_reasoning.cli.doctor import bytes_text, rendered
from native_reasoning.cli.output import indented, show, show_table
from native_reasoning.records.folder import read_metrics
from native_reasoning.records.metrics import METRICS, evaluation_rows
from native_reasoning.records.progress import clock_text

#: Of the first and the last steps, for people.
_TRAINED = ("reward", "reward_baseline", "uplift", "trace_length", "closed")

# -- After training -------------------------------------------------------------------------------


def result_of(
    out: str, final: str, steps: int, after: Mapping[str, float] | None
) -> dict[str, Any]:
    """The outcome of a run: its evaluations (without the prefix eval_) and how training went."""
    lines = read_metrics(out)
    trained = [line for line in lines if "uplift" in line]
    before = [line for line in lines if line["step"] == 0 and "eval_uplift" in line]
    tenth = max(1, len(trained) // 10)
    return {
        "run": out,
        "model": final,
        "steps": steps,
        "before": _without_prefix(before[-1]) if before else None,
        "after": None if after is None else _without_prefix(after),
        "first_steps": _means(trained[:tenth]),
        "last_steps": _means(trained[-tenth:]),
    }


def _without_prefix(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("eval_"): v for k, v in metrics.items() if k.startswith("eval_")}


def _means(lines: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for name in _TRAINED:
        values = [line[name] for line in lines if line.get(name) is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found


def show_result(result: Mapping[str, Any]) -> None:
    """The outcome of a run as a table on stdout."""
    after, before = result["after"], result["before"]
    if after is None:
        first, last = result["first_steps"], result["last_steps"]
        rows = [
            [METRICS[name].title, METRICS[name].text(first[name]), METRICS[name].text(last[name])]
            for name in _TRAINED
            if name in first and name in last
        ]
        show_table(["in training", "first steps", "last steps"], rows)
        show("no held-out questions: --eval-data F measures accuracy with and without thinking")
    else:
        title = f"{after['questions']} held-out questions"
        columns = [before, after] if before else [after]
        names = ["before", "after"] if before else ["after"]
        show_table([title, *names], evaluation_rows(*columns))
        show("in brackets: 95 % interval over questions")
    show(f"steps  {result['steps']}\nrun    {result['run']}\nmodel  {result['model']}")


# -- Before training ------------------------------------------------------------------------------


def plan_of(trainer: Any, args: Any) -> dict[str, Any]:
    """What a run with these ``args`` would do; ``trainer`` has those of a dry run."""
    from native_reasoning.rollout.schedule import make_schedule, total_steps

    groups, template = trainer.train_groups, trainer.template
    schedule = make_schedule(len(groups), args)
    sampled = args.resolved_objective().traces == "sampled"
    return {
        "model": trainer.model.config.name_or_path,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "device": str(args.device),
        "rows": len(groups),
        "eval_rows": len(trainer.eval_groups),
        "preset": args.preset,
        "traces_per_prompt": args.num_generations if sampled else 0,
        "prompts_per_step": schedule.prompts,
        "steps": total_steps(schedule, args),
        "boundary": template.boundary.mode,
        "think": [template.boundary.open_text, template.boundary.close_text],
        "layouts": list(trainer.forwards.layouts),
        "first_prompt": rendered(groups[0], template),
    }


def show_plan(outlook: Mapping[str, Any]) -> None:
    """What a run would do, as text on stdout."""
    evaluated = f", {outlook['eval_rows']} held out" if outlook["eval_rows"] else ", none held out"
    seconds, memory = outlook["seconds_per_step"], outlook["memory"]
    rows = [
        ["model", f"{outlook['model']} ({outlook['parameters']:,} parameters)"],
        ["device", outlook["device"]],
        ["rows", f"{outlook['rows']}{evaluated}"],
        ["preset", outlook["preset"]],
        ["traces per prompt", str(outlook["traces_per_prompt"])],
        ["prompts per step", str(outlook["prompts_per_step"])],
        ["steps", str(outlook["steps"])],
        ["boundary", f"{outlook['boundary']}: {' '.join(map(repr, outlook['think']))}"],
        ["run folder", outlook["run"]],
        ["a step of full length", f"{seconds:.3g} s, measured"],
        [
            "all steps",
            f"at most about {clock_text(seconds * outlook['steps'])}, without evaluations",
        ],
        ["memory at its peak", "not measured here" if memory is None else bytes_text(memory)],
    ]
    show_table(["", ""], rows)
    show("first row, as the model sees it:")
    for part, text in outlook["first_prompt"].items():
        show(f"{part}:\n{indented(text)}")
    show("dry run: nothing was written")
