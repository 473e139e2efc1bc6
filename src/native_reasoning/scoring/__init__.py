"""Log-probabilities of trace, answer and answer without a trace, in one forward.

``Scorer`` (scorer) is the door; ``capabilities_of`` (capabilities) tries what an architecture can
do; ``Judges`` (judges) are copies of the policy; ``diagnose`` exchanges traces between prompts.
"""
