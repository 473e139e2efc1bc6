"""The policy: its weights, what stands in for them, and what its forward needs."""
