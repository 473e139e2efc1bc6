"""What a base model's own README.md tells of it, and whose a README.md is."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import (
    ModelCard,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from native_reasoning.model.folders import is_path

NAME = "README.md"
#: A card with this line is ours to write anew; without it, it is somebody's own.
OURS = "<!-- native-reasoning writes this card anew unless this line is taken out -->"
_LARGEST = 1_000_000
_PATIENCE = 5.0  # seconds


@dataclass(frozen=True)
class Base:
    """The model that training began with, and what its own card says: ``hub_id`` where it has one,
    ``licence`` an identifier of the hub or None, ``details`` its name and link where it is another.
    """

    name: str
    hub_id: str | None = None
    licence: str | None = None
    details: Mapping[str, str] = field(default_factory=dict)


def find_base(name: str) -> Base:
    """A base model by hub id or folder, as its own README.md tells; the hub is asked for that file
    once where it is not here. Whatever cannot be read is unknown."""
    if not name:
        return Base("")
    path = Path(name).expanduser()
    local = is_path(name)
    shown, hub_id = (_folder_name(path.resolve()), None) if local else (name, name)
    try:
        file = path / NAME if local else _fetched(name)
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return Base(shown, hub_id)
        data: Any = ModelCard(file.read_text("utf-8"), ignore_metadata_errors=True).data
    except Exception:  # no network, no such file, no YAML: of many libraries
        return Base(shown, hub_id)
    if local and is_ours(file) and is_name(data.base_model):
        hub_id = str(data.base_model)  # of another's model this would be the one before it
    details = {
        key: value
        for key in ("license_name", "license_link")
        if isinstance(value := getattr(data, key, None), str) and len(value) < 200
    }
    licence = str(data.license) if is_name(data.license) else None
    return Base(shown, hub_id, licence, details)


def _fetched(hub_id: str) -> Path:
    """README.md of a model of the hub: from the cache, else by one question to the hub, since a
    download alone goes on asking for half a minute where there is no network. Raises where it
    cannot be had."""
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(hub_id, NAME, local_files_only=True))
    if constants.HF_HUB_OFFLINE:
        raise LocalEntryNotFoundError(f"{NAME} of {hub_id}")
    get_hf_file_metadata(hf_hub_url(hub_id, NAME), timeout=_PATIENCE)
    return Path(hf_hub_download(hub_id, NAME))


def is_ours(card: Path) -> bool:
    """Whether a README.md was written by us, and not edited into somebody's own."""
    return OURS in card.read_text("utf-8", errors="replace")


def _folder_name(path: Path) -> str:
    """A folder's name, with the run's where it is a part of one: other paths say too much."""
    inside = path.name == "final" or path.name.startswith("checkpoint-")
    return "/".join(path.parts[-2:]) if inside else path.name


def is_name(value: Any) -> bool:
    """Whether something is an identifier, of the hub or of a licence."""
    known = re.compile(r"[\w.+-]{1,96}(/[\w.+-]{1,96})?")
    return isinstance(value, str) and known.fullmatch(value) is not None
