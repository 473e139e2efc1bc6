"""What a run needs of memory, beside what there is, and what to lower."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from native_reasoning.cli.doctor import bytes_text
from native_reasoning.cli.memory import Load, Shape, predict

#: The share of the memory that is there which may be used up: what is counted is too low by as
#: much where a model is large (benchmarks/memory/run.py).
SAFE = 0.85


def shape_of(model: Any) -> Shape | None:
    """The widths of a causal language model. None where it has no attention heads, or where its
    layers are of several widths: what it keeps cannot be counted."""
    c = model.config.get_text_config()
    names = ("num_attention_heads", "hidden_size", "num_hidden_layers", "vocab_size")
    try:
        widths: list[Any] = [getattr(c, name, None) for name in names]
        heads, hidden, layers, vocabulary = widths
        each = getattr(c, "head_dim", None) or hidden // heads
        mlp = getattr(c, "intermediate_size", None) or 4 * hidden
        keys = (getattr(c, "num_key_value_heads", None) or heads) * each
    except (RuntimeError, TypeError):  # transformers' for a width of each layer; None or a list
        return None
    if not all(isinstance(x, int) for x in (*widths, each, mlp, keys)):
        return None
    width = next(model.parameters()).element_size()
    return Shape(
        parameters=sum(p.numel() * p.element_size() for p in model.parameters()) // width,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        width=width,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        mlp=mlp,
        heads=heads,
        attention=heads * each,
        keys=keys,
        fixed_head=not any(p.requires_grad for p in model.get_output_embeddings().parameters()),
    )


def load_of(config: Any, groups: Sequence[Any], cpu: bool) -> Load:
    """What a run's steps do, with the longest prompt and answer of ``groups``."""
    from native_reasoning.data.tokens import sizes_of

    prompt, answer = (int(sizes.max()) for sizes in sizes_of(groups))
    o = config.resolved_objective()
    prompts, micros = config.per_device_train_batch_size, config.gradient_accumulation_steps
    every = prompts * micros * config.steps_per_rollout()
    sampled = o.traces == "sampled"
    return Load(
        prompt=prompt,
        trace=config.max_trace_length if sampled else 0,
        answer=max(answer, config.max_answer_length) if o.samples_answers else answer,
        prompts=prompts,
        traces=config.num_generations if sampled else 0,
        micros=micros,
        sampled=min(config.rollout_batch_size or every, every),
        rows=config.rows_per_forward,
        checkpointing=bool(config.activation_checkpointing),
        doubled=o.samples_answers,
        copies=o.needs_frozen + o.needs_ema,
        number=2 if config.bf16 or config.fp16 else 4,
        cpu=cpu,
    )


def training_memory(
    model: Any, config: Any, groups: Sequence[Any], cpu: bool
) -> dict[str, int] | None:
    """``Memory`` by name, and its ``total``; None where it cannot be predicted."""
    shape = shape_of(model)
    if shape is None:
        return None
    found = predict(shape, load_of(config, groups, cpu))
    return {**asdict(found), "total": found.total}


def memory_text(memory: Mapping[str, int] | None) -> str:
    """The total and its parts in a line."""
    if memory is None:
        return "not predicted for this kind of model"

    def parts(*names: str) -> str:
        return ", ".join(f"{name} {bytes_text(memory[name])}" for name in names if memory[name])

    always = parts("process", "weights", "optimizer", "copies")
    training = f"training {bytes_text(memory['training'])}"
    training += f" ({parts('gradients', 'activations', 'head')})"
    then = f"{training} or sampling {bytes_text(memory['sampling'])}"
    return f"about {bytes_text(memory['total'])}: {always}; then {then}"


# -- What to lower --------------------------------------------------------------------------------


def suggestions(shape: Shape, load: Load, limit: int) -> list[dict[str, Any]]:
    """Settings that bring the peak below ``limit``, those that cost least time first, each with the
    ``total`` once it and those before it are set. Where even they do not, the last total says so;
    none where weights, gradients and optimizer alone are too much."""
    found: list[dict[str, Any]] = []
    memory = predict(shape, load)
    if memory.fixed + memory.gradients > limit:
        return found
    for flag, name, part, values in _levers(load):
        now = predict(shape, load).peak(part)
        tried = [replace(load, **{name: value}) for value in values]
        fits = (t for t in tried if predict(shape, t).peak(part) <= limit)
        chosen = next(fits, tried[-1]) if tried and now > limit else load
        if predict(shape, chosen).peak(part) < now:
            load = chosen
            total = predict(shape, load).total
            found.append({"setting": flag, "value": getattr(load, name), "total": total})
    return found


def _levers(load: Load) -> list[tuple[str, str, str | None, list[Any]]]:
    """Flags, what they change, which part of the memory that lowers (None: both), and the values
    below the present one, the largest first."""
    every = load.prompts * load.traces
    rows = min(load.rows or every, every)
    switch = [] if load.checkpointing else [True]
    traces = [*range((load.trace - 1) // 8 * 8, 0, -8)]
    return [
        ("--rows-per-forward", "rows", "training", [*range(rows - 1, 0, -1)]),
        ("--rollout-batch-size", "sampled", "sampling", [*range(load.sampled - 1, 0, -1)]),
        ("--activation-checkpointing", "checkpointing", "training", switch),
        ("--max-trace-length", "trace", None, traces),
    ]


def memory_there(cpu: bool) -> int | None:
    """Bytes that this machine has: what is free on its GPU; on a CPU all, or what its container may
    use. None where it does not say."""
    if not cpu:
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None
    try:
        return min(there, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or one without a limit
        return there


def memory_report(model: Any, config: Any, groups: Sequence[Any], cpu: bool) -> dict[str, Any]:
    """``memory`` to train on this machine (None where it cannot be predicted), what is there
    (``memory_there``), and what to lower (``memory_lower``), None where that is enough. ``cpu``: a
    GPU is left alone."""
    import torch

    cpu = cpu or not torch.cuda.is_available()
    shape, load, there = shape_of(model), load_of(config, groups, cpu), memory_there(cpu)
    if shape is None:
        return {"memory": None, "memory_there": there, "memory_lower": None}
    found, lower = predict(shape, load), None
    if there is not None and found.total > SAFE * there:
        lower = suggestions(shape, load, int(SAFE * there))
    return {
        "memory": {**asdict(found), "total": found.total},
        "memory_there": there,
        "memory_lower": lower,
    }


def lower_warning(total: int, there: int, lower: Sequence[dict[str, Any]]) -> str:
    """What is too much, and what to lower."""
    steps = ", then ".join(
        f"{step['setting']} {str(step['value']).lower()} (about {bytes_text(step['total'])})"
        for step in lower
    )
    said = (
        f"training needs about {bytes_text(total)}, and this machine has {bytes_text(there)}, "
        f"{SAFE:.0%} of it safe to plan with{': ' if lower else ''}{steps}"
    )
    if lower and lower[-1]["total"] <= SAFE * there:
        return said
    return f"{said}; no setting lowers that enough: take a smaller model or a larger machine"
