"""config.yaml's text: what is a secret, what is not, and that every value has a YAML form."""

import dataclasses
import enum
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainingArguments

from native_reasoning.records.manifest import HIDDEN, is_secret, manifest, versions


def told(config, command=(), extra=None) -> dict:
    return yaml.safe_load(manifest(config, None, 0, list(command), extra or {}))


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hub_token",
        "hubToken",
        "HF_TOKEN",
        "push_to_hub_token",
        "hftoken",
        "use_auth_token",
        "auth_tokens",
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
        "Authorization",
        "token_value",
        "--hub-token",
    ],
)
def test_secret_names(name):
    assert is_secret(name, "x")
    assert is_secret(name, ["x"])
    assert is_secret(name, {"inner": ("x",)})
    assert name not in told({name: "x", "kept": 1})["config"]


@pytest.mark.parametrize(
    "name",
    [
        "max_tokens",
        "max_new_tokens",
        "include_num_input_tokens_seen",
        "eos_token",
        "pad_token",
        "eos_token_id",
        "pad_token_id",
        "special_tokens",
        "trainable_token_indices",
        "token_type",
        "tokenizer",
        "tokenizer_name",
        "tokenize",
        "average_tokens_across_devices",
        "key",
        "monkey",
    ],
)
def test_names_that_are_no_secret(name):
    assert not is_secret(name, "x")
    assert told({name: "x"})["config"] == {name: "x"}


def test_a_number_under_token_is_no_secret_but_under_password_it_is():
    for value in (5, None, True, 0.5, "", [], [1, 2], {"a": 1}, torch.tensor(1)):
        assert not is_secret("format_token", value)
        assert is_secret("password", value)


def test_of_trainers_own_settings_only_the_token_is_lost(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), hub_token="hf_planted", use_cpu=True)
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    assert set(given) - set(told(given)["config"]) == {"hub_token"}


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["nrt", "train", "--hub_token", "abc"], ["nrt", "train", "--hub_token", HIDDEN]),
        (["--hub-token=abc=", "x"], [f"--hub-token={HIDDEN}", "x"]),
        (["hub_token=abc"], [f"hub_token={HIDDEN}"]),
        (["--max_tokens", "5", "--eos_token=</s>"], ["--max_tokens", "5", "--eos_token=</s>"]),
        (["--api_key", "--data", "token.jsonl"], ["--api_key", "--data", "token.jsonl"]),
        (["my-token", "x"], ["my-token", "x"]),
        (["--hub_token"], ["--hub_token"]),
    ],
)
def test_command_line(command, shown):
    assert told({}, command)["command"] == shown


def test_a_secret_is_hidden_wherever_it_stands():
    page = told(
        {"api_key": "topsecret", "lists": [{"password": ["deeper-one"]}], "short": {"token": "ab"}},
        command=["run", "--x", "topsecret"],
        extra={"note": "topsecret, deeper-one, abc", "n": ("topsecret",)},
    )
    assert page["config"] == {"lists": [{}], "short": {}}
    assert page["command"] == ["run", "--x", HIDDEN]
    assert page["note"] == f"{HIDDEN}, {HIDDEN}, abc"  # "ab" is too short to be looked for
    assert page["n"] == [HIDDEN]


def test_a_secret_within_another_is_hidden_whole():
    page = told({"a_token": "abcdef", "b_token": "abcdefghi", "note": "abcdefghi"})
    assert page["config"] == {"note": HIDDEN}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hf_abcdefghijklmnopqrst", HIDDEN),
        ("see https://me:pass@host/x", f"see https://{HIDDEN}@host/x"),
        ("https://host:80/a@b", "https://host:80/a@b"),
        ('{"token": "abc", "n": 1}', '{"n": 1}'),
        ('{"n":   1}', '{"n":   1}'),
        ("{not json}", "{not json}"),
        ("{" * 5, "{" * 5),
    ],
)
def test_looks(text, shown):
    assert told({"x": text})["config"]["x"] == shown


class Colour(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Inner:
    size: int
    hub_token: str


def test_values_that_yaml_lacks():
    config = {
        "path": Path("a/b"),
        "dtype": torch.bfloat16,
        "enum": Colour.RED,
        "number": np.float32(0.5),
        "integer": np.int64(3),
        "tuple": (1, (2, 3)),
        "set": {"b", "a"},
        "frozen": frozenset({2, 1}),
        "data": Inner(1, "planted"),
        "class": Inner,
        3: None,
        "flag": True,
        "nan": float("inf"),
    }
    assert told(config)["config"] == {
        "path": "a/b",
        "dtype": "torch.bfloat16",
        "enum": "red",
        "number": 0.5,
        "integer": 3,
        "tuple": [1, [2, 3]],
        "set": ["a", "b"],
        "frozen": [1, 2],
        "data": {"size": 1},
        "class": str(Inner),
        "3": None,
        "flag": True,
        "nan": float("inf"),
    }


def test_versions(monkeypatch):
    assert versions()["transformers"] == importlib.metadata.version("transformers")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    found = versions()
    assert found.pop("python").startswith("3.")
    assert set(found) == {"torch", "transformers", "accelerate", "native_reasoning"}
    assert set(found.values()) == {"not installed"}
