"""Sampling traces: the protocol (engine), transformers models (hf), random numbers (noise)."""
