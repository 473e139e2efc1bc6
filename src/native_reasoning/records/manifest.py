"""The text of config.yaml: a run's settings, and what its numbers depend on, without secrets."""

import importlib.metadata
import platform
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import yaml

from native_reasoning import __version__

HIDDEN = "<secret>"
#: A setting that is named like one is left out: nobody reads a placeholder back as a token.
_SECRET = re.compile(
    r"(?!.*(bos|eos|pad|unk|sep|cls|mask)_token$).*"
    r"(token|(api|access|private)[_-]?key|secret|passw(or)?d|passphrase|credentials?)",
    re.IGNORECASE,
)
#: What looks like one in the text of another setting is written as ``HIDDEN``.
_LOOKS_SECRET = re.compile(r"\b(?:hf_|sk-|ghp_)\w{16,}|(?<=://)[^\s/@]+:[^\s/@]+(?=@)")
_PACKAGES = ("torch", "transformers", "accelerate")


def manifest(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The text of config.yaml: YAML with sorted keys that ``yaml.safe_load`` reads back.

    Values that YAML lacks are written as their nearest: a tuple as a list, any other object as its
    ``str``. ``about`` has further top-level entries.
    """
    page = _plain({**about, "config": config, "versions": versions()})
    return yaml.safe_dump(page, sort_keys=True, allow_unicode=True, width=100)


def versions() -> dict[str, str]:
    """Installed versions of Python and of what a run's numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found, "native_reasoning": __version__}


def is_secret(name: str) -> bool:
    """Whether a setting's name says that it must not be written down.

    >>> is_secret("hub_token"), is_secret("max_tokens"), is_secret("eos_token")
    (True, False, False)
    """
    return _SECRET.fullmatch(name) is not None


def _plain(value: Any) -> Any:
    """A value in YAML's own types, without secrets."""
    if isinstance(value, Mapping):
        return {str(k): _plain(inner) for k, inner in value.items() if not is_secret(str(k))}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=str)
    if value is None or isinstance(value, Real):
        return plain_number(value)
    return _LOOKS_SECRET.sub(HIDDEN, str(value))


def plain_number(value: Any) -> Any:
    """numpy and tensor scalars as Python's int and float; None, bool and text as they are."""
    if value is None or isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
