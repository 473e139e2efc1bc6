"""Settings that cannot work are refused with what, why and fix."""

import pytest

from native_reasoning.checks import RANGES
from native_reasoning.config import NRTConfig
from native_reasoning.errors import ConfigError
from native_reasoning.options import NRTOptions
from native_reasoning.presets import PRESETS
from native_reasoning.recipe import make_config

REFUSED = [
    ({"clip": "rellu"}, "clip is 'rellu' (did you mean 'relu'?)"),
    ({"num_generations": 1}, "num_generations is 1"),
    ({"preset": "rlpr", "num_generations": 1}, "num_generations is 1"),
    ({"preset": "sft", "reward": "logp"}, "a reward 'logp' with preset 'sft'"),
    ({"preset": "sft", "reward_funcs": "a:b"}, "a reward of your own with preset 'sft'"),
    ({"preset": "sft-think", "answer_gate": "relu"}, "answer_gate is 'relu'"),
    ({"reward": "exact_match"}, "reward 'exact_match' with policy_tokens 'trace_tag'"),
    ({"length_reward": 0.5}, "length_reward with policy_tokens 'trace_tag'"),
    ({"baseline": "none"}, "clip is 'relu' with preset 'nrt-ws', which has no baseline"),
    ({"preset": "dro", "answer_weight": "exact"}, "answer_weight is 'exact' with reward 'reflect"),
    ({"preset": "sft", "answer_weight": "exact"}, "answer_weight is 'exact' with reward 'none'"),
    ({"preset": "jepo", "centre": "mean"}, "centre is 'mean' with reward 'jepo'"),
    ({"centre": "lme_loo"}, "centre is 'lme_loo' with reward 'weighted_neglog'"),
    ({"preset": "verifree", "reward": "logp"}, "bad_format is 'zero' with reward 'logp'"),
    ({"preset": "latro", "reward": "prob"}, "bad_format is 'twice_mean' with reward 'prob'"),
    ({"preset": "nrt-logp", "bad_format": "twice_mean"}, "bad_format is 'twice_mean'"),
]


def config(tmp_path, **settings):
    return make_config({"output_dir": str(tmp_path), "use_cpu": True, **settings})


@pytest.mark.parametrize(("settings", "what"), REFUSED)
def test_refused(settings, what, tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_allowed(preset, tmp_path):
    assert config(tmp_path, preset=preset).preset == preset


@pytest.mark.parametrize(
    "settings",
    [
        {"preset": "verifree", "reward": "logp", "clip": "relu", "baseline": "current"},
        {"preset": "sft-think", "reward_funcs": "a:b"},
        {"preset": "jepo", "reward": "logp"},
        {"centre": "rank"},
        {"preset": "rlvr", "length_reward": 0.1},
        {"objective": "mine:fn", "centre": "lme_loo"},  # an own objective ignores them
    ],
)
def test_allowed(settings, tmp_path):
    config(tmp_path, **settings)


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ranges(name, low, high, tmp_path):
    kind = NRTConfig.__dataclass_fields__[name].type
    assert name in NRTOptions.__dataclass_fields__ or "batch" in name or "accumulation" in name
    for value in (low - 1, high * 1.5):
        value = int(value) if "int" in str(kind) else value
        with pytest.raises(ConfigError, match=f"{name} is"):
            config(tmp_path, preset="sft-think", **{name: value})
