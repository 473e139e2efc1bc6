"""The lab's experiments as rows: which runs answer which question. No torch here.

A run is one preset on one family from one base model with one seed. Everything that is compared is
trained with as many steps, prompts and traces; what differs is in ``Run``.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lab.candidates import CANDIDATES
from lab.families import kind_of

#: Pre-training seeds of the three base models of a kind: the first that were admitted
#: (benchmarks/lab/bases.py; one_sum's seeds 2 and 3 were not).
BASES = {"demo": (0, 1, 2), "one_sum": (0, 1, 4), "three_sums": (0, 1, 2)}
SEEDS = (0, 1, 2, 3, 4)
#: (place in BASES, training seed) of experiments with five runs a cell.
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 3), (1, 4))

REWARDS = ("ws", "ws-inverse", "gm", "am", "logp", "p")
RIVALS = ("avg-logp", "verifree", "jepo", "jepo-1", "latro", "rlpr", "nover", "dro")

Changes = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Run:
    """``base`` is the seed of pre-training, ``seed`` that of training; ``kind`` the kind of base
    model (families.py), by default the first that knows the family. ``changes`` are settings in
    place of the preset's and the lab's; ``control`` is one of controls.py. ``noise`` is the share
    of training answers whose digit is replaced by a random one."""

    family: str
    preset: str
    base: int
    seed: int
    steps: int
    changes: Changes = ()
    control: str = ""
    noise: float = 0.0
    kind: str = ""

    @property
    def key(self) -> str:
        """The run in one line; the same settings have the same key."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Experiment:
    """A question, and the runs that are to answer it."""

    name: str
    question: str
    runs: Callable[[], Iterable[Run]]


def _cells(
    families: Iterable[str],
    presets: Iterable[str],
    steps: int,
    pairs: Iterable[tuple[int, int]] = PAIRS,
    kind: str = "",
    **rest: Any,
) -> list[Run]:
    return [
        Run(family, preset, BASES[kind or kind_of(family)][place], seed, steps, kind=kind, **rest)
        for family in families
        for preset in presets
        for place, seed in pairs
    ]


def _forms(rewards: Iterable[str], *endings: str) -> list[str]:
    return [f"nrt-{reward}{ending}" for ending in endings for reward in rewards]


#: The default, and the same without weights and clip: what most separates them.
TWO = ("nrt-ws", "nrt-am-released")
_FOUR = ("ws", "am", "gm", "logp")


def _with_exact(family: str, rewards: Iterable[str], steps: int) -> list[Run]:
    """Exact answer weights behind every trace: the -paper forms without their gate."""
    return _cells([family], _forms(rewards, ""), steps, changes=(("answer_weight", "exact"),))


def _short() -> list[Run]:
    presets = [*_forms(REWARDS, "", "-released"), "sft", "sft-think"]
    return _cells(["short_answer"], presets, 80) + _with_exact("short_answer", REWARDS, 80)


def _style() -> list[Run]:
    every = [(place, seed) for seed in SEEDS for place in range(len(BASES["demo"]))]
    main = _cells(["style_shift"], _forms(_FOUR, "", "-released"), 300, every)
    main.sort(key=lambda run: (run.seed, run.base))  # a stop in the middle leaves whole cells
    return main + _cells(["style_shift"], ["sft", "sft-think"], 300)


def _bases() -> list[Run]:
    return _cells(["style_shift"], _forms(_FOUR, "", "-released"), 100, kind="one_sum")


def _presets() -> list[Run]:
    rivals = [name + form for name in RIVALS for form in ("", "@shared")]
    own = _forms(REWARDS, "", "-released")
    presets = [*own, *rivals, "rlvr", "sft", "sft-think"]
    return _cells(["style_shift"], presets, 100) + _with_exact("style_shift", REWARDS, 100)


RATES, COEFS = (1e-4, 2e-4, 5e-4), (0.0, 0.1, 1.0)
#: Whose learning rate and answer weight are looked for, on seeds of their own.
TUNED = ("nrt-ws", "nrt-am", "nrt-logp", "nrt-am-released")


def _rates() -> list[Run]:
    return [
        run
        for rate in RATES
        for coef in COEFS
        for run in _cells(
            ["style_shift"],
            TUNED,
            120,
            ((0, 100), (1, 101)),
            changes=(("learning_rate", rate), ("answer_coef", coef)),
        )
    ]


#: What came out (tables.best_changes of the committed rates.jsonl; tests compare).
BEST: dict[str, Changes] = {
    "nrt-ws": (("learning_rate", 5e-4), ("answer_coef", 0.0)),
    "nrt-am": (("learning_rate", 5e-4), ("answer_coef", 1.0)),
    "nrt-logp": (("learning_rate", 5e-4), ("answer_coef", 1.0)),
    "nrt-am-released": (("learning_rate", 2e-4), ("answer_coef", 1.0)),
}


def _best() -> list[Run]:
    return [
        run
        for preset, changes in BEST.items()
        for run in _cells(["style_shift"], [preset], 120, changes=changes)
    ]


MIXTURES = ("mixture_05", "mixture_10", "mixture_20", "style_shift", "mixture_50")
USEFUL = ("useful_01", "useful_03", "useful_20")
CONTROLS = ("reversed", "no_shift", "middle", "uncertain", "unanswered")


def _tasks() -> list[Run]:
    return _cells([*MIXTURES, *USEFUL, *CONTROLS], TWO, 100, kind="one_sum")


@dataclass(frozen=True)
class Setting:
    """One setting of the objective that is changed, in these presets."""

    name: str
    changes: Changes = ()
    control: str = ""
    presets: tuple[str, ...] = TWO
    steps: int = 100


SETTINGS = (
    Setting("as it is"),
    Setting("K 2", (("num_generations", 2), ("per_device_train_batch_size", 64))),
    Setting("K 4", (("num_generations", 4), ("per_device_train_batch_size", 32))),
    Setting("K 16", (("num_generations", 16), ("per_device_train_batch_size", 8))),
    Setting("answer weight none", (("answer_weight", "none"),)),
    Setting("answer weight exact", (("answer_weight", "exact"),)),
    Setting("answer gate", (("answer_gate", "relu"),), presets=("nrt-ws", "nrt-am")),
    Setting("no std, equal RMS", (("scale", "none"),), "equal_rms"),
    Setting("50 steps of sft-think first", (("format_warmup_steps", 50),), steps=150),
    Setting("shuffled advantages", control="shuffled", presets=("nrt-ws",)),
    Setting("oracle reward", control="oracle", presets=("nrt-ws",)),
)


def _settings() -> list[Run]:
    return [
        run
        for s in SETTINGS
        for run in _cells(["style_shift"], s.presets, s.steps, changes=s.changes, control=s.control)
    ]


def _long() -> list[Run]:
    released = _forms(("ws", "am", "logp", "p"), "-released")
    presets = ["nrt-ws", "nrt-logp", *released, "avg-logp", "sft"]
    without = _cells(["long_no_shift"], ["nrt-ws", "nrt-logp-released"], 60)
    return _cells(["long"], presets, 60) + without


def _unanswerable() -> list[Run]:
    presets = ("nrt-ws", "nrt-logp-released")
    mixed = _cells(["short_answer+by_chance"], presets, 80)
    return mixed + [
        run
        for noise in (0.0, 0.25, 0.5, 0.75)
        for run in _cells(["short_answer"], presets, 80, noise=noise, kind="one_sum")
    ]


def _longer() -> list[Run]:
    return _cells(["longer"], ("nrt-ws", "nrt-logp-released", "sft"), 100)


def _candidates() -> list[Run]:
    """Style shift of all first: who is worse there need not be run on long answers."""
    return [
        run
        for family, steps in (("style_shift", 100), ("long", 60))
        for preset, changes in CANDIDATES.values()
        for run in _cells([family], [preset], steps, changes=changes)
    ]


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment("short", "Does every reward learn to think where nothing hinders it?", _short),
        Experiment("style", "Which rewards collapse where thinking costs style?", _style),
        Experiment("bases", "Is it the same from another kind of base model?", _bases),
        Experiment("presets", "What do all methods' recipes do there in 100 steps?", _presets),
        Experiment("rates", "Which learning rate and answer weight suit each?", _rates),
        Experiment("best", "And with these, which rewards learn?", _best),
        Experiment("tasks", "What of the task decides it?", _tasks),
        Experiment("settings", "What of the objective decides it?", _settings),
        Experiment("long", "And on long answers, with several hard tokens?", _long),
        Experiment("unanswerable", "Are reasons invented for what has none?", _unanswerable),
        Experiment("candidates", "Which objective is to be the default?", _candidates),
        Experiment("longer", "Does it think further than it was trained to?", _longer),
    )
}
