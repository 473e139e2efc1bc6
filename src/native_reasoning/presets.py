"""The papers, as rows of one table: name -> Objective, with where it comes from.

Adding a method is adding a row here, and at most one function in objective.py.
"""

from dataclasses import dataclass, fields, replace

from native_reasoning.errors import ConfigError, did_you_mean
from native_reasoning.objective import Objective


@dataclass(frozen=True)
class Preset:
    """A named objective: what it is, and which paper or code it follows."""

    objective: Objective
    summary: str
    source: str


_NRT = "Native Reasoning Training, arXiv 2602.11549"
_DEFAULT = Objective()

_NRT_REWARDS = {
    "nrt-ws": ("weighted_neglog", "mean of c weighted by −log b: hard tokens count most"),
    "nrt-ws-inverse": ("weighted_inverse", "mean of c/e^b: gain over the empty trace"),
    "nrt-gm": ("geometric_mean", "geometric mean of the answer tokens' probabilities"),
    "nrt-am": ("arithmetic_mean", "mean of the answer tokens' probabilities (RLPR's reward)"),
    "nrt-logp": ("logp", "log-probability of the answer (JEPO's and LaTRO's reward)"),
    "nrt-p": ("prob", "probability of the whole answer (VeriFree's reward)"),
}


def _nrt_family() -> dict[str, Preset]:
    """Each NRT reward three times: our default, the paper's weights, the released code's."""
    rows = {}
    for name, (reward, summary) in _NRT_REWARDS.items():
        default = replace(_DEFAULT, reward=reward)
        paper = replace(default, answer_weight="exact")
        released = replace(default, baseline="none", clip="none")
        rows[name] = Preset(default, summary, _NRT)
        rows[f"{name}-paper"] = Preset(paper, f"{summary}; exact answer weights", _NRT)
        rows[f"{name}-released"] = Preset(released, f"{summary}; no clip", f"{_NRT}, released code")
    return rows


PRESETS: dict[str, Preset] = {
    **_nrt_family(),
    "sft": Preset(
        replace(_DEFAULT, reward=None, ratio="none", format_loss_coef=0.0, traces="empty"),
        "supervised training of the answer after an empty trace; nothing is sampled",
        "the baseline of every paper",
    ),
    "sft-think": Preset(
        replace(_DEFAULT, reward=None, ratio="none", format_loss_coef=0.0),
        "the answer term alone, after the model's own traces",
        "control",
    ),
}

OBJECTIVE_FIELDS = tuple(field.name for field in fields(Objective))


def preset_objective(name: str) -> Objective:
    """The objective of a preset. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS)}",
            why="a preset names the objective that is trained",
            fix="nrt presets lists them all",
        )
    return PRESETS[name].objective
