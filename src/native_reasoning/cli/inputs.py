"""What the verbs read: data by name, settings from recipes and runs, model folders of runs."""

import re
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from native_reasoning.cli.flags import Parsed
from native_reasoning.config.errors import ConfigError, NativeReasoningError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.config.recipe import make_config, read_recipe
from native_reasoning.config.settings import COLUMNS
from native_reasoning.data import Examples, load_examples
from native_reasoning.model.adapters import base_of
from native_reasoning.records.disk import CHECKSUMS, damage
from native_reasoning.records.folder import CONFIG
from native_reasoning.training.resume import newest_checkpoint

_LIBRARIES = ("transformers", "accelerate", "lm_eval")
_SPLIT = re.compile(r"(?P<source>.+?)\s*\[(?P<split>[\w.-]+)\]")

#: Settings of a training run that an evaluation of it leaves out.
_TRAINING_ONLY = (
    *("model", "data", "eval_data", "output_dir", "report_to", "peft_config", "optimizers"),
    *("preset", "objective", "objective_func", "reward_funcs", "reward_weights"),
    *("eval_strategy", "eval_steps", "eval_on_start", "save_strategy"),
    *("load_best_model_at_end", "metric_for_best_model", "deepspeed", "fsdp", "fsdp_config"),
)


def split_source(name: str) -> tuple[str, str | None]:
    """A source's name and its split: ``owner/name:config[test]`` or ``folder[test]``."""
    found = None if Path(name).exists() else _SPLIT.fullmatch(name)
    return (found["source"], found["split"]) if found else (name, None)


def load_data(name: str, config: NRTConfig, *, held_out: bool = False) -> Examples:
    """Examples of a source as the settings say. Raises DataError or ConfigError."""
    source, split = split_source(name)
    columns: dict[str, Any] = config.columns(held_out=held_out)
    return load_examples(source, **columns, split=split, keep_columns=bool(config.reward_funcs))


def model_folder(name: str) -> tuple[str, Path | None]:
    """The model that a name means, and the run it belongs to. A run folder stands for its
    ``final/``, else for its newest checkpoint. Raises RunError where it has neither, or where the
    files of ``final/`` are not those that were saved."""
    path = Path(name).expanduser()
    if (path / CONFIG).is_file():
        final = path / "final"
        if (final / CHECKSUMS).is_file() and (wrong := damage(final)):
            raise RunError(
                f"{final} is damaged: {wrong[0]}",
                why="its numbers would be those of another model",
                fix=f"nrt train --out {path} --resume makes it anew; if it was changed on "
                f"purpose, delete its {CHECKSUMS}",
            )
        found = final if final.is_dir() else newest_checkpoint(path)
        if found is None:
            raise RunError(
                f"{name} holds a run without a saved model",
                why="neither final/ nor a checkpoint is there",
                fix="train longer, or with a smaller --save-steps",
            )
        return str(found), path
    inside = path.is_dir() and (path.parent / CONFIG).is_file()
    return name, path.parent if inside else None


def asked_for(parsed: Parsed) -> tuple[str, NRTConfig]:
    """The model folder or hub id that a command line names, and its settings: those of its run
    which matter to whoever asks, then those of the command line. Nothing is judged, and two traces
    suit every preset."""
    model, run = model_folder(parsed.positional)
    settings: dict[str, Any] = {}
    if run is not None:
        settings = read_recipe(run / CONFIG, parsed.settings, going_on=True)
        settings = {key: value for key, value in settings.items() if key not in _TRAINING_ONLY}
        own = {name: settings.pop(f"eval_{name}", None) for name in COLUMNS}
        settings |= own if any(own.values()) else {}
        if {
            "prompt_column",
            "prompt_template",
        } & parsed.settings.keys():  # one takes the other's place
            settings = {k: v for k, v in settings.items() if not k.startswith("prompt_")}
        if settings.get("boundary") != "text":  # saved with its think tokens, which are trained
            settings["boundary"] = "existing"
        settings["chat_template_path"] = None  # the saved tokenizer has it
    if base_of(Path(model)) is None:
        settings.pop("load_in_4bit", None)
    if parsed.own.get("seed") is not None:
        settings["seed"] = parsed.own["seed"]
    settings |= parsed.settings | {"num_generations": 2}
    with refused_by_libraries():
        return model, make_config(settings, output_dir=gettempdir())


@contextmanager
def refused_by_libraries(*names: str) -> Generator[None]:
    """Turns what a library raises (of ``names``, else those that read settings) into a ConfigError:
    ``--report-to dvclive`` where that is not installed, a tracker without a login. Errors that our
    own code raises pass through."""
    try:
        yield
    except NativeReasoningError:
        raise
    except Exception as error:
        origin = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        library = next((name for name in names or _LIBRARIES if name in origin.parts), None)
        if library is None:
            raise
        raise ConfigError(
            f"{library}: {' '.join(str(error).split())}",
            why="the library refuses the settings",
            fix="change the setting, or do what it asks for (a tracker: --report-to none)",
        ) from error
