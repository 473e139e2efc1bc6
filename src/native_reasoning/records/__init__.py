"""What a run leaves behind: metrics, traces, settings, the model's card."""
