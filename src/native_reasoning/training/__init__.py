"""The update: collect, score, judge, loss; checkpoints, and how a run goes on.

``NRTTrainer`` (trainer) is the door.
"""
