"""``nrt train --plan N``: what the settings come to on N processes, before anything is loaded."""

from collections.abc import Mapping
from typing import Any

import yaml

from native_reasoning.cli.output import indented, show, show_json, show_table
from native_reasoning.cli.plan import Plan
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import make_config
from native_reasoning.rollout.schedule import make_schedule

#: What transformers makes of the device that it finds here.
_OF_THE_DEVICE = ("use_cpu", "dataloader_pin_memory")


def run(plan: Plan, as_json: bool) -> int:
    """Resolves the settings and prints what they come to; needs no network, model or data."""
    found = outlook(plan)
    if as_json:
        show_json(found)
    else:
        show_outlook(found)
    return 0


def outlook(plan: Plan) -> dict[str, Any]:
    """What a run would do, as far as the settings alone tell. Raises ConfigError.

    Without ``max_steps`` their number follows from the data, and is None here.
    """
    # the run will be elsewhere: that there is no GPU here must not refuse bf16
    config = make_config(plan.settings, output_dir=plan.out, use_cpu=True)
    resolved = config.resolved().items()
    settings = {name: value for name, value in resolved if name not in _OF_THE_DEVICE}
    return {
        "run": plan.out,
        "model": plan.model,
        "data": plan.data,
        "eval_data": plan.eval_data,
        "processes": plan.processes,
        **_counts(config, plan.processes),
        "settings": settings,
    }


def _counts(config: NRTConfig, processes: int) -> dict[str, Any]:
    """Prompts, traces, updates and the most tokens of a step, a rollout and a run."""
    schedule, objective = make_schedule(0, config, processes), config.resolved_objective()
    updates = schedule.minibatches * schedule.passes
    sampled = objective.traces == "sampled"
    prompts = schedule.minibatches * schedule.prompts
    traces = prompts * config.num_generations if sampled else 0
    trace = config.max_trace_length if sampled else 0
    steps = config.max_steps if config.max_steps > 0 else None
    written = trace + (config.max_answer_length if objective.samples_answers else 0)
    rollouts = None if steps is None else -(-steps // updates)
    return {
        "prompts_per_step": schedule.prompts,
        "updates_per_rollout": updates,
        "prompts_per_rollout": prompts,
        "traces_per_prompt": config.num_generations if sampled else 0,
        "traces_per_rollout": traces,
        "steps": steps,
        "rollouts": rollouts,
        "prompts": None if rollouts is None else rollouts * prompts,
        "warmup_steps": None if steps is None else config.get_warmup_steps(steps),
        "most_tokens_of_a_row": config.max_prompt_length + trace + config.max_answer_length,
        "most_tokens_sampled_per_rollout": traces * written,
    }


def show_outlook(found: Mapping[str, Any]) -> None:
    """The same as text on stdout: a table, then the settings as in a run's config.yaml."""
    settings = found["settings"]
    run, whole = f"{settings['num_train_epochs']:g} epochs of the data", ""
    if found["steps"] is not None:
        run = f"{found['steps']:,}, {found['warmup_steps']:,} of them warm-up"
        whole = f"; {found['rollouts']:,} in the run, with {found['prompts']:,} prompts"
    sampled = f"{found['traces_per_rollout']:,} traces, at most"
    rows = [
        ["model", found["model"]],
        ["data", f"{found['data']}, held out: {found['eval_data'] or 'none'}"],
        ["preset", settings["preset"]],
        ["processes", str(found["processes"])],
        ["traces per prompt", str(found["traces_per_prompt"])],
        ["prompts per step", str(found["prompts_per_step"])],
        ["steps per rollout", str(found["updates_per_rollout"])],
        ["prompts per rollout", f"{found['prompts_per_rollout']:,}{whole}"],
        ["sampled per rollout", f"{sampled} {found['most_tokens_sampled_per_rollout']:,} tokens"],
        ["longest row", f"{found['most_tokens_of_a_row']:,} tokens: prompt, trace and answer"],
        ["steps", run],
        ["run folder", found["run"]],
    ]
    show_table(["", ""], rows)
    show("settings, but for those that are null:")
    given = {name: value for name, value in settings.items() if value is not None}
    show(indented(yaml.safe_dump(given, allow_unicode=True, width=100).rstrip()))
    show("nothing was loaded and nothing was written; memory: nrt check DATA --model M")
