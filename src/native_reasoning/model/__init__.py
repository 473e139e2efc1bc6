"""The policy: its weights, its adapter, and how they lie on several devices.

``load_policy`` (policy) is the door. Adapters, 4-bit weights and what ranks share have a file each,
and nothing outside knows how they work.
"""
