"""Every setting, the papers as rows of settings, and the errors.

``NRTConfig`` (nrt_config) is every setting of a run, ``make_config`` and ``read_recipe`` (recipe)
fill it; ``ObjectiveSettings`` (settings) and ``PRESETS`` (papers) say what a method is; ``errors``
has every error that a user can act on.
"""
