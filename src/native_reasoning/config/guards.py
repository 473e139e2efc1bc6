"""What a recipe may not do unasked: it may come from anybody. SECURITY.md has it in words."""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from native_reasoning.config.errors import ConfigError

#: What only a person who runs a recipe may set.
VOUCHER = "trust_imports"
_CODE = "it can run code that comes with a model"
_SENDS = "it sends what a run makes to a place that the recipe names, in your name"
_LIBRARY = "it hands other libraries files or patterns that nobody has looked at"
#: What a recipe, or a run's config.yaml, from outside the working folder may not set, and why.
GUARDED_ALWAYS = {"trust_remote_code": _CODE, "model_init_kwargs": _CODE}
#: The same for recipes alone: a run is gone on with as it was begun.
GUARDED_IN_RECIPES = {
    "report_to": _SENDS,
    "project": _SENDS,
    "trackio_space_id": _SENDS,
    "trackio_bucket_id": _SENDS,
    "trackio_static_space_id": _SENDS,
    "vllm_server_base_url": _SENDS,
    "deepspeed": _LIBRARY,
    "fsdp_config": _LIBRARY,
    "accelerator_config": _LIBRARY,
    "parallelism_config": _LIBRARY,
    "optim_target_modules": _LIBRARY,
}
_OFF = (None, False, "", "false", "False", "no", "none", "None", "[]", (), [], {})
#: Of model_init_kwargs, what does no more than choose between parts of transformers.
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
HARMLESS = {
    "attn_implementation": _ATTENTION,
    "dtype": _DTYPES,
    "torch_dtype": _DTYPES,
}


def check_recipe(
    named: Mapping[str, Any], path: Path, given: Container[str], *, going_on: bool
) -> None:
    """Raises ConfigError where a recipe asks for what its user has to ask for, and has not
    ``given`` beside it; ``going_on``: it is that of a run that the user has named."""
    if named.get(VOUCHER) not in _OFF:
        raise ConfigError(
            f"{VOUCHER} in recipe {path}",
            why="it lets a recipe run any installed code, and a recipe cannot vouch for itself",
            fix="leave it out of the recipe; --trust-imports, if you know what the recipe names",
        )
    if in_working_folder(path):
        return
    guarded = GUARDED_ALWAYS | ({} if going_on else GUARDED_IN_RECIPES)
    for name, reason in guarded.items():
        value = named.get(name)
        if name in given or value in _OFF or (name == "model_init_kwargs" and _harmless(value)):
            continue
        raise ConfigError(
            f"{name} in recipe {path}",
            why=f"{reason}, and the recipe is not from the working folder",
            fix=f"--{name.replace('_', '-')} on the command line as well, if you know what it does",
        )


def check_place(folder: Any) -> None:
    """Raises ConfigError where a recipe's output_dir leads out of the working folder."""
    if not in_working_folder(str(folder)):
        raise ConfigError(
            f"output_dir {folder!r} in the recipe",
            why="a recipe may come from anybody, and writes into the working folder only",
            fix="leave it out of the recipe; --out names the folder where you want the run",
        )


def _harmless(kwargs: Any) -> bool:
    return isinstance(kwargs, Mapping) and all(
        value in HARMLESS.get(str(name), ()) for name, value in kwargs.items()
    )


def in_working_folder(path: str | Path) -> bool:
    """Whether a path, links followed, leads into the working folder. ``~`` is the home folder, as
    transformers reads it."""
    try:
        return Path(os.path.expanduser(path)).resolve().is_relative_to(Path.cwd().resolve())
    except (OSError, ValueError, RuntimeError):  # a name that cannot be, a ring of links
        return False
