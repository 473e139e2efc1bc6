"""The numbers that a run writes, for docs/diagnostics.md, where the site is built (conf.py)."""

from collections.abc import Sequence

from native_reasoning.records.metrics import ASKED, EXCHANGE, MEASURED, STEP, TIMES, Metric

PARTS = {
    "Every step": STEP,
    "Every `diagnostics_steps` steps": EXCHANGE,
    "Every evaluation": (*MEASURED, *ASKED),
    "In timings.jsonl": TIMES,
}


def table(metrics: Sequence[Metric]) -> str:
    """A Markdown table, a row for each."""
    rows = [["name", "unit", "what it is", "healthy"], ["---"] * 4]
    rows += [[f"`{m.name}`", m.unit, m.sentence, m.healthy] for m in metrics]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page() -> str:
    """A table for each part."""
    return "\n\n".join(f"### {title}\n\n{table(part)}" for title, part in PARTS.items())
