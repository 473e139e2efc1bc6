"""What config.yaml says: settings, versions, data hash, seed and command, and never a secret.

A secret is known by its name (``hub_token``, ``WANDB_API_KEY``), by being equal to such a setting's
value, or by its looks (``hf_...``, ``https://user:password@host``). A named one is left out with
its name, so that nobody reads a placeholder back as a token; elsewhere ``<secret>`` stands for it.
"""

import contextlib
import dataclasses
import enum
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import yaml

HIDDEN = "<secret>"

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SECRET_NAME = re.compile(
    r"secret|passw|passphrase|credential|authorization|(api|access|private)_?key"
)
_LOOKS_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)\w{16,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_PLAIN_TOKEN = frozenset(
    [
        "bos",
        "eos",
        "pad",
        "unk",
        "sep",
        "cls",
        "mask",
        "special",
        "begin",
        "end",
        "start",
        "stop",
        "think",
    ]
)
_ABOUT_TOKENS = frozenset(
    [
        "boundary",
        "budget",
        "count",
        "id",
        "ids",
        "index",
        "indices",
        "length",
        "level",
        "limit",
        "mask",
        "text",
        "type",
        "weight",
    ]
)
_SECRET_TOKENS = frozenset(["access", "api", "auth", "bearer", "hf", "hub", "refresh"])
_PACKAGES = ("torch", "transformers", "accelerate", "native-reasoning")
_MIN_SECRET = 6
"""A shorter secret is looked for by its name only: "none" may stand anywhere."""


def manifest(
    config: Mapping[str, Any],
    data_hash: str | None,
    seed: int,
    command: Sequence[str],
    extra: Mapping[str, Any],
) -> str:
    """The text of config.yaml: YAML with sorted keys that ``yaml.safe_load`` reads back.

    Values that YAML lacks are written as their nearest: an enum's value, a tuple as a list, any
    other object as its ``str``. ``extra`` has further top-level entries.
    """
    secrets = sorted({*_secret_values(config), *_secret_values(extra)}, key=len, reverse=True)
    page = {
        **extra,
        "config": config,
        "versions": versions(),
        "data_hash": data_hash,
        "seed": seed,
        "command": _hide_flags(command),
    }
    return yaml.safe_dump(_plain(page, secrets), sort_keys=True, allow_unicode=True, width=100)


def versions() -> dict[str, str]:
    """Installed versions of Python and of what a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name.replace("-", "_")] = "not installed"
    return found


def is_secret(name: str, value: Any) -> bool:
    """Whether a setting's name says that it must not be written down.

    "token" is the hard word: ``hub_token`` is one, ``max_tokens``, ``eos_token`` and
    ``pad_token_id`` are not, nor is any setting that holds numbers only. In doubt it is a secret.

    >>> is_secret("hub_token", "hf_x"), is_secret("max_tokens", "12"), is_secret("api_key", 1)
    (True, False, True)
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    if _SECRET_NAME.search("_".join(words)):
        return True
    if not any(True for _ in _texts(value)):
        return False
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        plain = before in _PLAIN_TOKEN or after in _ABOUT_TOKENS
        if (word.endswith("token") and not plain) or (
            word == "tokens" and before in _SECRET_TOKENS
        ):
            return True
    return False


def _texts(value: Any) -> Iterator[str]:
    """Every text that is not empty in a value, however deep."""
    if isinstance(value, str):
        yield from [value] if value else []
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from _texts(inner)


def _secret_values(value: Any) -> Iterator[str]:
    """Every text that stands under a secret name."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            found = _texts(inner) if is_secret(str(name), inner) else _secret_values(inner)
            yield from (text for text in found if len(text) >= _MIN_SECRET)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secret_values(inner)


def _plain(value: Any, secrets: Sequence[str]) -> Any:
    """A value in YAML's own types, without secrets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        kept = {str(k): inner for k, inner in value.items() if not is_secret(str(k), inner)}
        return {name: _plain(inner, secrets) for name, inner in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, secrets) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner, secrets) for inner in value), key=str)
    if isinstance(value, enum.Enum):
        return _plain(value.value, secrets)
    if value is None or isinstance(value, Real):
        return plain_number(value)
    return _hide(str(value), secrets)


def plain_number(value: Any) -> Any:
    """numpy and tensor scalars as Python's int and float; None, bool and text as they are."""
    if value is None or isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _hide(text: str, secrets: Sequence[str]) -> str:
    """The text with ``<secret>`` in place of each secret; JSON objects lose their secret keys."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    with contextlib.suppress(ValueError, RecursionError):
        if text.lstrip().startswith("{"):
            told = json.loads(text)
            kept = _plain(told, secrets)
            text = text if kept == told else json.dumps(kept)
    return _LOOKS_SECRET.sub(HIDDEN, text)


def _hide_flags(command: Sequence[str]) -> list[str]:
    """A command line without the values of ``--hub_token X``, ``--hub_token=X``, …"""
    shown: list[str] = []
    hide_next = False
    for argument in command:
        name, equals, value = argument.partition("=")
        secret = is_secret(name, value or "?") and (name.startswith("-") or equals)
        if hide_next and not argument.startswith("--"):
            argument = HIDDEN
        elif secret and equals:
            argument = f"{name}={HIDDEN}"
        hide_next = bool(secret and not equals)
        shown.append(argument)
    return shown
