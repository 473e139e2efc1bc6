"""What a run leaves behind: metrics, traces, settings, the model's card.

``RunFolder`` (folder) writes what a step leaves, ``disk`` makes files whole or absent.
"""
