"""Log-probabilities of trace, answer and answer without a trace, in one forward."""
