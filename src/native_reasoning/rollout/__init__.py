"""Sampling traces: the protocol (engine), transformers models (hf), stateless randomness (noise)."""
