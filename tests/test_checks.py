"""Settings that cannot work are refused with what, why and fix."""

import math
import re
from dataclasses import fields
from itertools import pairwise

import pytest

from native_reasoning.config.checks import CHANGEABLE, LOG_PROBABILITIES, RANGES, check_together
from native_reasoning.config.checks import REFUSED as REFUSED_ARGUMENTS
from native_reasoning.config.errors import ConfigError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.recipe import make_config
from native_reasoning.config.settings import SETTINGS, NRTOptions
from tiny import folded

REFUSED = [
    ({"clip": "rellu"}, "clip is 'rellu' (did you mean 'relu'?)"),
    ({"num_generations": 1}, "num_generations is 1"),
    ({"preset": "rlpr", "num_generations": 1}, "num_generations is 1"),
    ({"preset": "sft", "reward": "logp"}, "preset is 'sft' with objective.reward 'logp'"),
    ({"preset": "sft", "reward_funcs": "a:b"}, "preset is 'sft' with objective.reward 'none'"),
    ({"preset": "sft-think", "answer_gate": "relu"}, "answer_gate is 'relu'"),
    ({"reward": "exact_match"}, "is 'exact_match' with objective.policy_tokens 'trace_tag'"),
    ({"baseline": "none"}, "clip is 'relu' with objective.baseline 'none', preset 'nrt-ws'"),
    ({"preset": "dro", "answer_weight": "exact"}, "is 'exact' with objective.reward 'reflection'"),
    ({"preset": "sft", "answer_weight": "exact"}, "is 'exact' with objective.reward 'none'"),
    ({"preset": "jepo", "centre": "mean"}, "centre is 'mean' with objective.reward 'jepo'"),
    ({"centre": "lme_loo"}, "centre is 'lme_loo' with objective.reward 'weighted_neglog'"),
    ({"preset": "verifree", "reward": "logp"}, "format is 'zero' with objective.reward 'logp'"),
    ({"preset": "latro", "reward": "prob"}, "is 'twice_mean' with objective.reward 'prob'"),
    ({"preset": "nrt-logp", "bad_format": "twice_mean"}, "bad_format is 'twice_mean'"),
    ({"preset": "sft-think", "reward": "logp", "num_generations": 1}, "num_generations is 1"),
    ({"preset": "sft-think", "reward_funcs": "a:b", "num_generations": 1}, "num_generations is 1"),
    (
        {"preset": "sft", "policy_tokens": "trace_tag_answer", "reward": "exact_match"},
        "objective.traces 'empty'",
    ),
    ({"preset": "rlvr", "policy_tokens": "trace_tag"}, "reward is 'exact_match' with objective.p"),
    ({"preset": "rlvr", "answer_weight": "exact"}, "is 'exact' with objective.reward 'exact_"),
    ({"preset": "nover", "answer_weight": "exact"}, "with objective.reward 'perplexity_rank'"),
    ({"preset": "jepo", "centre": "rank"}, "centre is 'rank' with objective.reward 'jepo'"),
    ({"preset": "jepo", "reward": "prob"}, "'lme_loo' with objective.reward 'prob'"),
    ({"preset": "verifree", "reward": "avg_logp"}, "is 'zero' with objective.reward 'avg_logp'"),
    ({"preset": "jepo", "bad_format": "zero"}, "is 'zero' with objective.reward 'jepo'"),
    (
        {"preset": "latro", "clip": "relu", "baseline": "ema"},
        "reward 'logp', objective.clip 'relu'",
    ),
    ({"preset": "nrt-logp-released", "clip": "relu"}, "baseline 'none', preset 'nrt-logp-rel"),
    ({"preset": "latro", "bad_format": "zero"}, "is 'zero' with objective.reward 'logp'"),
    ({"preset": "dro", "bad_format": "zero"}, "is 'zero' with objective.reward 'reflection'"),
    ({"preset": "verifree", "kl_in_reward": 0.1}, "objective.kl_in_reward 0.1"),
    ({"preset": "rlpr", "format_warmup_steps": 5}, "format_warmup_steps is 5 with preset 'rlpr'"),
    (
        {"preset": "nover", "baseline": "current"},
        "scored_by is 'ema' with objective.baseline 'current'",
    ),
]


def config(tmp_path, **settings):
    return make_config({"output_dir": str(tmp_path), "use_cpu": True, **folded(settings)})


@pytest.mark.parametrize(("settings", "what"), REFUSED)
def test_refused(settings, what, tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix
    assert str(caught.value).splitlines()[0] == caught.value.what
    changed = [name for name in settings if name not in ("preset", "reward_funcs")]
    assert not changed or any(name in caught.value.what for name in changed)


OPTIONS = {f.name: f for f in fields(NRTOptions)}
OPTIONS |= {f"objective.{name}": SETTINGS[name] for name in CHANGEABLE}


def ways_out(fix):
    """The settings that a ``fix:`` line names, one dictionary per alternative.

    >>> ways_out("objective.clip none or relu, or preset sft")
    [{'objective.clip': 'none'}, {'objective.clip': 'relu'}, {'preset': 'sft'}]
    """
    out, last = [], ""
    for part in re.split(r",? or ", fix):
        words = part.split(",")[0].replace(" is ", " ").replace("'", "").split()
        found = {a: b for a, b in pairwise(words) if a in OPTIONS and b != "whose"}
        found = found or ({last: words[0]} if len(words) == 1 and last else {})
        last = next(iter(found), last)
        out += [found] if found else []
    return out


def test_alternatives_of_a_fix_are_read_right():
    assert ways_out("objective.scale std or none, or preset sft with objective.clip none") == [
        {"objective.scale": "std"},
        {"objective.scale": "none"},
        {"preset": "sft", "objective.clip": "none"},
    ]
    assert ways_out("num_generations 8, or preset sft-think, which compares nothing") == [
        {"num_generations": "8"},
        {"preset": "sft-think"},
    ]


@pytest.mark.parametrize("settings", [s for s, _ in REFUSED], ids=str)
def test_every_setting_that_a_fix_names_helps(settings, tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    ways = ways_out(caught.value.fix)
    assert ways or "one of: " in caught.value.fix
    for way in ways:
        config(tmp_path, **{**settings, **way})


#: Values of arguments of transformers that are refused.
REFUSED_VALUES = {
    "label_smoothing_factor": 0.1,
    "dataloader_drop_last": True,
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": True,
    "bf16_full_eval": True,
    "neftune_noise_alpha": 5.0,
    "push_to_hub": True,
    "enable_jit_checkpoint": True,
    "auto_find_batch_size": True,
    "per_device_eval_batch_size": 25,
}


@pytest.mark.parametrize("name", REFUSED_ARGUMENTS)
def test_arguments_that_are_not_read_or_do_harm_are_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=f"^{name} is ") as caught:
        config(tmp_path, **{name: REFUSED_VALUES[name]})
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("preset", "baseline", "weight", "mixes"),
    [
        ("nrt-ws", "current", "one", True),
        ("nrt-ws", "frozen", "one", True),
        ("nrt-ws", "ema", "one", False),
        ("nrt-ws", "ema", "none", False),
        ("nrt-ws", "ema", "exact", True),
        ("nrt-ws-released", "none", "one", False),
        ("nrt-ws-released", "none", "exact", True),
    ],
)
def test_a_lagging_copy_scores_alone_or_not_at_all(preset, baseline, weight, mixes, tmp_path):
    settings = {"preset": preset, "baseline": baseline, "answer_weight": weight}
    if not mixes:
        config(tmp_path, scored_by="ema", **settings)
        return
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, scored_by="ema", **settings)
    told = f"with objective.baseline {baseline!r}, objective.answer_weight {weight!r}"
    assert caught.value.what == f"objective.scored_by is 'ema' {told}"
    assert caught.value.fix == "objective.baseline ema with objective.answer_weight one"


@pytest.mark.parametrize("name", [name for name, f in OPTIONS.items() if f.metadata["choices"]])
def test_a_value_that_is_no_choice_is_told_all_of_them(name, tmp_path):
    choices = OPTIONS[name].metadata["choices"]
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **{name: choices[0] + "x"})
    assert caught.value.what == f"{name} is '{choices[0]}x' (did you mean {choices[0]!r}?)"
    assert caught.value.why == OPTIONS[name].metadata["help"]
    assert caught.value.fix == f"one of: {', '.join(choices)}"
    with pytest.raises(ConfigError, match=f"{name} is 'zzzzzz'\n"):
        config(tmp_path, **{name: "zzzzzz"})


@pytest.mark.parametrize("reward", ["logp", "avg_logp", "jepo", "prob", "reflection"])
def test_the_rewards_that_are_logarithms(reward, tmp_path):
    settings = {"preset": "jepo-1", "reward": reward, "answer_weight": "none", "centre": "lme_loo"}
    if reward in LOG_PROBABILITIES:
        assert config(tmp_path, **settings).resolved_objective().reward == reward
    else:
        with pytest.raises(ConfigError, match="R must be a log-probability"):
            config(tmp_path, **settings)


def test_an_objective_that_is_given_needs_more_than_one_trace(tmp_path):
    """As one that is named: the trainer asks again, with what it was given."""
    made = config(tmp_path, preset="sft-think", num_generations=1)
    check_together(made, made.resolved_objective(), judged=False)
    with pytest.raises(ConfigError, match="num_generations is 1 with preset 'sft-think'"):
        check_together(made, made.resolved_objective(), judged=True)
    alone = config(tmp_path, preset="avg-logp", centre="none", num_generations=1)
    check_together(alone, alone.resolved_objective(), judged=True)
    empty = config(tmp_path, preset="sft")
    with pytest.raises(ConfigError, match="preset is 'sft' with") as caught:
        check_together(empty, empty.resolved_objective(), judged=True)
    assert "reward_funcs" in caught.value.why


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
        {"objective_func": "mine:fn", "centre": "lme_loo"},  # an own objective ignores them
    ],
)
def test_allowed(settings, tmp_path):
    config(tmp_path, **settings)


#: Something reads every setting, and one trace is enough.
READER = {
    "preset": "sft-think",
    "use_peft": True,
    "use_vllm": True,
    "baseline": "ema",
    "bad_format": "penalty",
    "filter": "ema_std",
    "ratio": "ppo",
    "policy_tokens": "trace_tag_answer",
}


BETWEEN = {name: f.metadata["within"] for name, f in OPTIONS.items() if f.metadata["within"]}


@pytest.mark.parametrize(("name", "within"), {**BETWEEN, **RANGES}.items())
def test_ranges(name, within, tmp_path):
    low, high = within
    kinds = {f.name: f.type for f in fields(NRTConfig)}
    kind = OPTIONS[name].type if name in OPTIONS else kinds[name]
    whole = "int" in str(kind)
    for value in (low, high):
        made = config(tmp_path, **{**READER, name: int(value) if whole else value})
        part = name.removeprefix("objective.")
        assert (getattr(made, name) if part == name else made.objective[part]) == value
    beyond = [low - 1, high + 1] if whole else [math.nextafter(low, -math.inf), high * 1.001]
    for value in [int(v) for v in beyond] if whole else [*beyond, math.inf, -math.inf]:
        with pytest.raises(ConfigError) as caught:
            config(tmp_path, **{**READER, name: value})
        assert caught.value.what == f"{name} is {value}"
        assert caught.value.why == f"it must be from {low:g} to {high:g}"
        assert caught.value.fix == f"change {name}"
    if not whole:
        with pytest.raises(ConfigError, match=f"{name} is nan"):
            config(tmp_path, **{**READER, name: math.nan})


@pytest.mark.parametrize("name", ["lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"])
def test_settings_of_an_adapter_without_one_are_refused(name, tmp_path):
    """All weights would be trained."""
    value = {"lora_target_modules": "q_proj", "load_in_4bit": True}.get(name, 100)
    config(tmp_path, use_peft=True, **{name: value})
    with pytest.raises(ConfigError, match=f"{name} is .* with use_peft False") as caught:
        config(tmp_path, **{name: value})
    assert caught.value.fix.startswith("use_peft true")


def test_coefficients_are_numbers_too(tmp_path):
    """With another every step would be skipped: its loss is not a number."""
    settings = {"preset": "rlvr", "reward_funcs": "a:b", "reward_weights": 0.5}
    coefficients = [
        "reward_coef",
        "format_reward",
        "efficiency_reward",
        "repetition_penalty",
        "answer_coef",
        "format_loss_coef",
        "reward_weights",
    ]
    taken = []
    for name in coefficients:
        config(tmp_path, **{**settings, name: 0.25})
        for value in (math.nan, math.inf):
            try:
                config(tmp_path, **{**settings, name: value})
                taken.append((name, value))
            except ConfigError as error:
                assert name in error.what  # noqa: PT017
    assert taken == []
