"""The policy: its weights, what stands in for them, and what its forward needs.

``load_policy`` (policy) is the door. Adapters, 4-bit weights, weights cut over ranks and what ranks
agree on have a file each, and nothing outside knows how they work.
"""
