"""config.yaml's text: what is a secret, what is not, and that every value has a YAML form."""

import dataclasses
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainingArguments

from native_reasoning.records.manifest import HIDDEN, is_secret, manifest, versions


def told(config, extra=None) -> dict:
    return yaml.safe_load(manifest(config, extra or {}))


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hub_token",
        "HF_TOKEN",
        "push_to_hub_token",
        "hftoken",
        "use_auth_token",
        "api_key",
        "WANDB_API_KEY",
        "apikey",
        "openai-api-key",
        "private_key",
        "aws_secret_access_key",
        "client_secret",
        "password",
        "db_passwd",
        "ssh_passphrase",
        "credentials",
    ],
)
def test_secret_names(name):
    assert is_secret(name)
    assert told({name: "x", "kept": 1, "inner": [{name: ["x"]}]})["config"] == {
        "kept": 1,
        "inner": [{}],
    }


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "max_new_tokens",
        "include_num_input_tokens_seen",
        "eos_token",
        "pad_token",
        "eos_token_id",
        "special_tokens",
        "policy_tokens",
        "trainable_token_indices",
        "tokenizer",
        "average_tokens_across_devices",
        "key",
        "monkey",
    ],
)
def test_names_that_are_no_secret(name):
    assert not is_secret(name)
    assert told({name: "x"})["config"] == {name: "x"}


def test_of_trainers_own_settings_only_the_token_is_lost(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), hub_token="hf_planted", use_cpu=True)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    assert set(given) - set(told(given)["config"]) == {"hub_token"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_abcdefghijklmnopqrst", HIDDEN),
        ("see https://me:pass@host/x", f"see https://{HIDDEN}@host/x"),
        ("https://host:80/a@b", "https://host:80/a@b"),
    ],
)
def test_looks(text, shown):
    assert told({"x": text})["config"]["x"] == shown
    assert told({}, {"note": [text]})["note"] == [shown]


def test_values_that_yaml_lacks():
    config = {
        "path": Path("a/b"),
        "dtype": torch.bfloat16,
        "number": np.float32(0.5),
        "integer": np.int64(3),
        "tuple": (1, (2, 3)),
        "set": {"b", "a"},
        "frozen": frozenset({2, 1}),
        3: None,
        "flag": True,
        "nan": float("inf"),
    }
    assert told(config)["config"] == {
        "path": "a/b",
        "dtype": "torch.bfloat16",
        "number": 0.5,
        "integer": 3,
        "tuple": [1, [2, 3]],
        "set": ["a", "b"],
        "frozen": [1, 2],
        "3": None,
        "flag": True,
        "nan": float("inf"),
    }


def test_versions():
    found = versions()
    assert found["transformers"] == importlib.metadata.version("transformers")
    assert found["python"].startswith("3.")
    assert set(found) == {"python", "torch", "transformers", "accelerate", "native_reasoning"}
