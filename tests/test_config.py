"""Settings: coercion, choices, recipes, and the resolved config as a recipe."""

from dataclasses import fields

import pytest
import yaml
from transformers import TrainingArguments

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.papers import PRESETS
from native_reasoning.config.recipe import make_config, read_recipe
from native_reasoning.config.settings import (
    COMMON_ARGUMENTS,
    SETTINGS,
    NRTOptions,
    ObjectiveSettings,
)
from native_reasoning.objective.losses import RATIOS
from native_reasoning.objective.rewards import CENTRES, REWARDS


def config(tmp_path, **settings) -> NRTConfig:
    return make_config({"output_dir": str(tmp_path / "run"), "use_cpu": True, **settings})


def test_every_option_has_a_sentence_and_an_honest_default(tmp_path):
    made = config(tmp_path)
    for field in fields(NRTOptions):
        assert field.metadata["help"], field.name
        assert getattr(made, field.name) == field.default, field.name
        choices = field.metadata["choices"]
        assert not choices or field.default is None or field.default in choices, field.name


def test_choices_are_those_of_the_tables():
    choices = {name: set(field.metadata["choices"]) for name, field in SETTINGS.items()}
    assert choices["reward"] == set(REWARDS)
    assert choices["centre"] == set(CENTRES)
    assert choices["ratio"] == set(RATIOS)


def test_common_arguments_exist_and_our_options_shadow_none_of_transformers():
    theirs = {field.name for field in fields(TrainingArguments)}
    assert set(COMMON_ARGUMENTS) <= theirs
    assert not theirs & {field.name for field in fields(NRTOptions)}


def test_text_values_become_what_the_field_holds(tmp_path):
    made = config(
        tmp_path,
        **{"learning-rate": "3e-6", "max_steps": "7", "use_peft": "true"},
        steps_per_generation=None,
        model_init_kwargs='{"dtype": "bfloat16"}',
        save_steps="5",
        objective={"answer-coef": "0.5", "beta": "1e-3", "ema_steps": "20", "std_eps": "none"},
        preset="nover",
    )
    assert (made.learning_rate, made.max_steps, made.use_peft) == (3e-6, 7, True)
    assert made.objective == {"answer_coef": 0.5, "beta": 1e-3, "ema_steps": 20, "std_eps": None}
    assert made.steps_per_generation is None
    assert made.model_init_kwargs == {"dtype": "bfloat16"}
    assert made.save_steps == 5
    assert isinstance(made.save_steps, int)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"learnin_rate": 1}, "did you mean 'learning_rate'"),
        ({"num-generation": 4}, "did you mean 'num_generations'"),
        ({"preset": "nrt-sw"}, "unknown preset 'nrt-sw'"),
        ({"objective": {"clip": "rellu"}}, "did you mean 'relu'"),
        ({"objective.clip": "rellu"}, "did you mean 'relu'"),
        ({"objective": {"clp": "relu"}}, "did you mean 'clip'"),
        ({"objective": {"traces": "empty"}}, "has no setting 'traces'"),
        ({"objective": "mine:fn"}, "objective is 'mine:fn'"),
        ({"objective": "mine:fn", "objective.clip": "none"}, "objective is 'mine:fn'"),
        ({"objective": {"beta": True}}, "objective.beta is True"),
        ({"objective": {"ema_steps": 1.5}}, "objective.ema_steps is 1.5"),
        ({"clip": "relu"}, "did you mean 'objective.clip'"),
        ({"num_generations": 1}, "num_generations is 1"),
        ({"num_generations": 0}, "num_generations is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_steps": "soon"}, "max_steps is 'soon'"),
        ({"use_peft": "perhaps"}, "use_peft is 'perhaps'"),
        ({"max_steps": 7.5}, "max_steps is 7.5"),
        ({"seed": None}, "seed is None"),
        ({"model_init_kwargs": "bfloat16"}, "model_init_kwargs is 'bfloat16'"),
        (
            {"preset": "nrt-ws-released", "objective": {"clip": "relu"}},
            "with objective.baseline 'none'",
        ),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "steps_per_generation 3"),
        ({"num_iterations": 0}, "num_iterations is 0"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
    ],
)
def test_settings_that_cannot_work_say_what_why_and_fix(settings, what, tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **settings)
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix


def test_lists_come_from_lists_from_text_and_from_one_number(tmp_path):
    for given in ("1.5,2", [1.5, 2], ["1.5", "2"]):
        assert config(tmp_path, reward_weights=given).reward_weights == [1.5, 2.0]
    assert config(tmp_path, reward_weights="0.5").reward_weights == [0.5]
    assert config(tmp_path, reward_weights=0.5).reward_weights == [0.5]
    assert config(tmp_path, reward_funcs="a:b, c:d").reward_funcs == ["a:b", "c:d"]
    assert config(tmp_path, reward_funcs="").reward_funcs is None
    with pytest.raises(ConfigError, match="each weight is a number"):
        config(tmp_path, reward_weights="much,little")


def test_one_trace_is_enough_where_nothing_is_compared(tmp_path):
    assert config(tmp_path, preset="sft-think", num_generations=1).num_generations == 1
    assert config(tmp_path, preset="sft", num_generations=1).num_generations == 1


def test_given_settings_take_the_place_of_the_presets(tmp_path):
    given = {"centre": "leave_one_out", "scale": "none", "answer_coef": 0.1}
    expected = ObjectiveSettings(reward="geometric_mean", **given)
    assert config(tmp_path, preset="nrt-gm", objective=given).resolved_objective() == expected
    flags = {f"objective.{name}": value for name, value in given.items()}
    recipe = {"objective": {"centre": "none", "scale": "none"}}
    made = config(tmp_path, preset="nrt-gm", **recipe, **flags)
    assert (made.objective, made.resolved_objective()) == (given, expected)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_makes_a_config(preset, tmp_path):
    assert config(tmp_path, preset=preset).resolved_objective() == PRESETS[preset].settings


def test_the_data_seed_follows_the_seed(tmp_path):
    assert config(tmp_path, seed=5).data_seed == 5
    assert config(tmp_path, seed=5, data_seed=6).data_seed == 6


def test_the_resolved_config_is_a_recipe_that_gives_the_same_config(tmp_path):
    first = config(
        tmp_path,
        preset="nrt-gm",
        learning_rate=1e-5,
        max_steps=3,
        eval_strategy="steps",
        objective={"scale": "none", "answer_coef": 0.1},
    )
    recipe = tmp_path / "config.yaml"
    recipe.write_text(yaml.safe_dump({"config": first.resolved(), "versions": {}}))
    second = make_config(read_recipe(recipe))
    assert second.resolved() == first.resolved()
    assert second.resolved_objective() == first.resolved_objective()


def test_a_recipe_cannot_vouch_for_the_code_that_it_names(tmp_path):
    recipe = tmp_path / "foreign.yaml"
    for name in ("trust_imports", "trust-imports"):
        recipe.write_text(f"reward_funcs: [evil:f]\n{name}: true\n")
        with pytest.raises(ConfigError, match="cannot vouch for itself"):
            read_recipe(recipe)
    # nor does the config.yaml of a run that somebody hands on
    for name in ("trust_imports", "trust-imports"):
        recipe.write_text(yaml.safe_dump({"config": {"preset": "nrt-gm", name: True}}))
        assert read_recipe(recipe) == {"preset": "nrt-gm"}
    recipe.write_text("trust_imports: false\ntrust-imports: true\n")
    with pytest.raises(ConfigError, match="cannot vouch for itself"):
        read_recipe(recipe)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "does not exist"),
        ("a: [1", "cannot be read"),
        ("- a\n", "holds list"),
        ("", "NoneType"),
    ],
)
def test_recipes_that_cannot_be_read_are_named(text, what, tmp_path):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="recipe.yaml") as caught:
        read_recipe(path)
    assert what in caught.value.what
