"""Validation inside verl: whether what follows the trace is the reference answer."""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **others) -> float:
    """1 for the same text, 0 for any other, or where the trace was never closed."""
    _, closed, answer = solution_str.rpartition("</think>")
    return float(bool(closed) and answer.strip() == ground_truth.strip())
