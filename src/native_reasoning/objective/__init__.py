"""What a trace is worth: pure functions from log-probabilities to a loss.

``Scores`` (types) -> ``Objective`` (credit: rewards, advantages, answer weights) -> ``Signal`` ->
``group_loss`` (losses). ``judge`` (verdicts) looks at sampled text.
"""
