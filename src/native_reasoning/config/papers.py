"""The papers, as rows of one table: name -> settings of an objective (settings.py).

Adding a method is adding a row here with what its paper says (methods.py), and at most one function
in rewards.py. A rival has two rows: ``verifree`` is its own recipe; ``verifree@shared`` takes only
its f and answer weight, and all else from ``nrt-*``, so that comparisons are fair both ways.
"""

from dataclasses import dataclass, replace
from typing import Any

from native_reasoning.config.errors import ConfigError, did_you_mean
from native_reasoning.config.methods import METHODS, Method
from native_reasoning.config.settings import ObjectiveSettings


@dataclass(frozen=True)
class Preset:
    """A named objective: its ``settings``, the ``method`` that it is a form of (its formula and
    source are there), and which ``form``, of ``FORMS``."""

    settings: ObjectiveSettings
    method: Method
    form: str = ""

    @property
    def summary(self) -> str:
        """What it rewards, in a line."""
        return "; ".join(filter(None, (self.method.summary, FORMS[self.form])))


#: What each form of a method is; "" is its own recipe.
FORMS = {
    "": "",
    "paper": "exact answer weights, and none behind a trace that hurts",
    "released": "no clip, as in the released code",
    "shared": "only f and its answer weight, all else as nrt-ws",
}

DEFAULT = ObjectiveSettings()

_NRT = {
    "nrt-ws": "weighted_neglog",
    "nrt-ws-inverse": "weighted_inverse",
    "nrt-gm": "geometric_mean",
    "nrt-am": "arithmetic_mean",
    "nrt-logp": "logp",
    "nrt-p": "prob",
}

#: What the sampling-only recipes have in common: no baseline, no clip, no format loss.
_PLAIN: dict[str, Any] = {
    "baseline": "none",
    "clip": "none",
    "ratio": "none",
    "format_loss_coef": 0.0,
}
#: Leave-one-out and no scaling: the estimator of the exact gradient.
_REINFORCE: dict[str, Any] = {**_PLAIN, "centre": "leave_one_out", "scale": "none"}
#: GRPO on all that was sampled: the reference answer is scored and never trained.
_GRPO: dict[str, Any] = {
    **_PLAIN,
    "answer_weight": "none",
    "policy_tokens": "trace_tag_answer",
    "bad_format": "zero",
}
_JEPO: dict[str, Any] = {
    **_PLAIN,
    "adv_clip": 1.0,
    "beta": 1e-3,
    "bad_format": "penalty",
    "format_penalty": 10.0,
}

#: Each rival's own recipe.
_RIVALS: dict[str, dict[str, Any]] = {
    "avg-logp": {**_REINFORCE, "reward": "avg_logp", "answer_weight": "exact"},
    "verifree": {
        **_REINFORCE,
        "reward": "prob",
        "reward_span": "answer",
        "answer_weight": "exact",
        "bad_format": "zero",
    },
    "jepo": {**_JEPO, "reward": "jepo", "centre": "lme_loo", "answer_weight": "exact"},
    "jepo-1": {**_JEPO, "reward": "logp", "centre": "leave_one_out"},
    "latro": {
        **_REINFORCE,
        "reward": "logp",
        "kl_in_reward": 0.05,
        "policy_tokens": "trace",
        "bad_format": "twice_mean",
    },
    "rlpr": {
        **_GRPO,
        "reward": "arithmetic_mean",
        "reward_span": "answer",
        "baseline": "frozen",
        "clip": "relu",
        "reward_coef": 0.9,
        "format_reward": 0.1,
        "repetition_penalty": 1.0,
        "std_eps": 1e-6,
        "ratio": "ppo",
        "ratio_low": 0.8,
        "ratio_high": 1.27,
        "length_norm": "token_mean",
        "filter": "ema_std",
        "filter_coef": 0.5,
    },
    "nover": {
        **_GRPO,
        "reward": "perplexity_rank",
        "scored_by": "ema",
        "format_reward": 1.0,
        "efficiency_reward": 1.0,
        "std_eps": 1e-4,
        "ratio": "ppo",
        "ratio_low": 0.9,
        "ratio_high": 1.2,
        "length_norm": "token_mean",
        "beta": 0.1,
        "ema_decay": 0.9,
        "ema_steps": 100,
    },
    "dro": {**_GRPO, "reward": "reflection", "bad_format": "mask", "beta": 1e-3},
}
#: What a @shared form takes from the method's own recipe: f and the answer weight.
_TAKEN = ("reward", "kl_in_reward", "answer_weight")
#: Where f has another name in a @shared form, or a part in the centring.
_SHARED_F = {
    "jepo": {"centre": "lme_loo"},
    "nover": {"reward": "length_normalised", "centre": "rank"},
}


def _nrt_family() -> dict[str, Preset]:
    """Each NRT reward three times: our default, the exact gradient, the released code's."""
    rows = {}
    for name, reward in _NRT.items():
        default, method = replace(DEFAULT, reward=reward), METHODS[name]
        released = replace(default, baseline="none", clip="none")
        rows[name] = Preset(default, method)
        exact = replace(default, answer_weight="exact", answer_gate="relu")
        rows[f"{name}-paper"] = Preset(exact, method, "paper")
        rows[f"{name}-released"] = Preset(released, method, "released")
    return rows


def _rivals() -> dict[str, Preset]:
    rows = {}
    for name, own in _RIVALS.items():
        shared = {key: own[key] for key in _TAKEN if key in own} | _SHARED_F.get(name, {})
        rows[name] = Preset(replace(DEFAULT, **own), METHODS[name])
        rows[f"{name}@shared"] = Preset(replace(DEFAULT, **shared), METHODS[name], "shared")
    return rows


_RLVR = replace(DEFAULT, **{**_GRPO, "reward": "exact_match", "ratio": "cispo"})
_SFT_THINK = replace(DEFAULT, reward="none", ratio="none", format_loss_coef=0.0)
_FORMAT = {"answer_weight": "none", "format_loss_coef": DEFAULT.format_loss_coef}

#: Every objective by name, as ``--preset`` and ``nrt presets`` have it.
PRESETS: dict[str, Preset] = {
    **_nrt_family(),
    **_rivals(),
    "rlvr": Preset(_RLVR, METHODS["rlvr"]),
    "sft": Preset(replace(_SFT_THINK, traces="empty"), METHODS["sft"]),
    "sft-think": Preset(_SFT_THINK, METHODS["sft-think"]),
    "format-only": Preset(replace(_SFT_THINK, **_FORMAT), METHODS["format-only"]),
    "permuted": Preset(replace(DEFAULT, advantages="permuted"), METHODS["permuted"]),
}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises ConfigError for an unknown one."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}{did_you_mean(name, PRESETS)}",
            why="a preset names the objective that is trained",
            fix="nrt presets lists them all",
        )
    return PRESETS[name]
