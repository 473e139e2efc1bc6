"""Evaluation: is the answer right, how likely was it, and did thinking help."""
