"""What a trace is worth: pure functions from log-probabilities to a loss."""
