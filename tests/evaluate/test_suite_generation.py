"""The settings of ``--gen-kwargs``."""

import pytest
from lm_eval.models.utils import normalize_gen_kwargs

from native_reasoning.config.errors import ConfigError
from native_reasoning.evaluation.suite.generation import generation

#: What lm-eval's gsm8k has.
TASK = {"until": ["Question:"], "do_sample": False, "temperature": 0.0}


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        ({"temperature": 0.7}, True),
        ({"temperature": 1, "top_p": 0.9, "top_k": 5, "min_p": 0}, True),
        ({"temperature": 0.7, "do_sample": True}, True),
        ({"temperature": 0}, False),
        ({"max_gen_toks": 5, "until": "x", "repetition_penalty": 1.1}, False),
        ({"do_sample": False}, False),
    ],
)
def test_what_lm_eval_makes_of_them(given, sampled):
    made = normalize_gen_kwargs({**TASK, **generation(given)})
    assert made["do_sample"] is sampled
    assert made["temperature"] == given.get("temperature", 0)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"max_gen_toks": True}, "max_gen_toks=True"),
        ({"max_gen_toks": 1.5}, "max_gen_toks=1.5"),
        ({"max_gen_tok": 5}, "did you mean 'max_gen_toks'"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": -1}, "temperature=-1"),
        ({"temperature": 1, "do_sample": False}, "do_sample=False and temperature 1"),
        ({"do_sample": "yes"}, "do_sample=yes"),
        ({"temperature": 1, "top_p": 2}, "top_p=2"),
        ({"min_p": 0.1}, "min_p without a temperature"),
        ({"until": 5}, "until=5"),
    ],
)
def test_what_is_refused(given, what):
    with pytest.raises(ConfigError, match=what):
        generation(given)
