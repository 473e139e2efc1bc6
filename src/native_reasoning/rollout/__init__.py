"""Which rows a step takes, and the traces that are sampled for them.

``make_schedule`` (schedule) -> ``HFEngine`` (hf) or vLLM (vllm), behind ``RolloutEngine`` (engine)
-> ``Window`` (window). ``noise`` is all of reproducibility: a number per token.
"""
