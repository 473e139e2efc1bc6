"""What a run leaves behind: metrics, traces, settings, the model's card.

``RunLog`` (runlog) notes a step, ``RunFolder`` (folder) writes it, ``disk`` makes files whole or
absent.
"""
