"""The policy: its weights, its adapter, and how they lie on several devices.

``load_policy`` (policy) is the door. Adapters, 4-bit weights, weights cut over ranks and what ranks
agree on have a file each, and nothing outside knows how they work.
"""
