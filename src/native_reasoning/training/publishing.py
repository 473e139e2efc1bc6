"""What a saved model has besides weights and tokenizer: its card, and a warning where servers
cannot do with it what one might expect. And its way to the hub."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import (
    create_repo,
    file_exists,
    hf_hub_download,
    metadata_load,
    metadata_save,
    upload_folder,
)

from native_reasoning.config.errors import RunError, warn
from native_reasoning.config.options import COMMON_ARGUMENTS
from native_reasoning.config.papers import find_preset
from native_reasoning.data import DataReport
from native_reasoning.data.rows import PromptGroup
from native_reasoning.data.sources import is_hub_id
from native_reasoning.model.adapters import has_adapter
from native_reasoning.records.bases import NAME, Base, find_base, is_ours
from native_reasoning.records.card import Facts, write_card
from native_reasoning.records.folder import read_metrics
from native_reasoning.records.manifest import manifest, versions
from native_reasoning.records.metrics import COLLAPSE
from native_reasoning.rollout.schedule import data_hash
from native_reasoning.training.evaluating import Evaluating

#: Settings that are about the machine or a place, or that have a line of their own.
_LEFT_OUT = {
    "accelerator_config",
    "chat_template_path",
    "deepspeed",
    "fsdp_config",
    "parallelism_config",
    "resume_from_checkpoint",
    "output_dir",
    "logging_dir",
    "run_name",
    "project",
    "report_to",
    "preset",
    "resolved_objective",
    "use_cpu",
    "do_eval",
    "data_seed",
    "dataloader_pin_memory",
}
_ALWAYS = {*COMMON_ARGUMENTS, "num_generations", "max_trace_length", "temperature"}
#: Settings whose text is part of prompts or of the data, and no path whatever it begins with.
_TEXTS = {
    "answer_column",
    "answer_regex",
    "boundary_text",
    "prompt_column",
    "system_prompt",
    "think_close",
    "think_open",
}
_PATH = re.compile(r"~|\.{0,2}[/\\]|[A-Za-z]:[/\\]|file:")
_WORD = re.compile(r"[^\s,;='\"(){}\[\]]+")


class Publishing(Evaluating):
    """A Trainer whose saved models say what they are. Abstract, as ``Evaluating``."""

    train_groups: Sequence[PromptGroup]
    train_report: DataReport | None
    given: dict[str, Any]
    recipe: dict[str, Any]

    def add_to_model(self, folder: Path) -> None:
        """The card, and a warning where the boundary is text."""
        boundary = self.template.boundary
        if boundary.closes_by_text:
            warn(
                f"the boundary is the text {boundary.close_text!r}: pipelines and servers return "
                "trace and answer as one text, and enable_thinking does nothing. Models for "
                "servers: --boundary auto"
            )
        self.write_card(folder)

    def write_card(self, folder: Path) -> None:
        """README.md of a saved model, as much as is known by now, on the process that saves."""
        if not self.args.should_save:
            return
        try:
            write_card(folder, self._facts())
        except Exception as error:  # of whatever a card is made of: a model is worth more than it
            reason = f"{type(error).__name__}: {error}"
            warn(f"{folder.name} has no new model card (README.md), which needs {reason}")

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        license: str | None = None,
        tags: str | Sequence[str] = (),
    ) -> Any:
        """Uploads the model as it is now, with its card, to ``hub_model_id`` (or a repository named
        as the run folder), and nothing else: the run folder holds prompts, answers and traces.

        A card of ``final/``, of the run folder or of the repository that was edited (our comment is
        gone) is not replaced by a new one. ``license`` and further ``tags`` are for the head of a
        new one; what else transformers' takes for its card, ours says by itself. Returns what
        ``huggingface_hub.upload_folder`` does, a future unless ``blocking``, on the process that
        saves, else None.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            for known in (self.folder / NAME, self.folder / "final" / NAME):
                if known.is_file() and not is_ours(known):
                    shutil.copy(known, folder)
            self.save_model(str(folder))
            if not self.is_world_process_zero():
                return None
            token = token or self.args.hub_token
            private = self.args.hub_private_repo if private is None else private
            name = self.args.hub_model_id or self.folder.name
            made = create_repo(name, token=token, private=private, exist_ok=True)
            at: dict[str, Any] = {"token": token, "revision": revision or self.args.hub_revision}
            new = (folder / NAME).is_file() and is_ours(folder / NAME)
            if new and (license or tags):
                _say_more(folder / NAME, license, [tags] if isinstance(tags, str) else tags)
            sent: Any = upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                ignore_patterns=[NAME] if new and _is_edited(made.repo_id, at) else None,
                run_as_future=not blocking,
                **at,
            )
            if not blocking:
                kept = stack.pop_all()  # until it is sent
                sent.add_done_callback(lambda _: kept.close())
            return sent

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.args.output_dir))

    @cached_property
    def _base(self) -> Base:
        model = self.accelerator.unwrap_model(self.model)
        return find_base(str(self.recipe.get("model") or model.config.name_or_path))

    @cached_property
    def _data(self) -> tuple[str, int, int, str] | None:
        report = self.train_report
        if report is None:
            return None
        name = str(self.recipe.get("data") or report.source)
        of_hub = is_hub_id(name.partition(" [")[0]) and not name.startswith(".")
        short = name if of_hub else _last(name)
        return short, report.kept, report.read, data_hash(self.train_groups)

    def _facts(self) -> Facts:
        evaluation, at, collapse = self._measured()
        custom = [self.given.get("objective_func"), *self.given.get("reward_funcs", ())]
        custom += [self.args.objective_func, *(self.args.reward_funcs or ())]
        return Facts(
            name=self.folder.resolve().name,
            base=self._base,
            preset_name=self.args.preset,
            preset=find_preset(self.args.preset),
            boundary=self.template.boundary,
            steps=self.step_of_weights,
            settings=self._settings(),
            versions=versions(),
            data=self._data,
            evaluation=evaluation,
            evaluated_at=at,
            collapse=collapse,
            adapter=has_adapter(self.accelerator.unwrap_model(self.model)),
            custom=[str(name) for name in custom if name],
        )

    def _measured(self) -> tuple[dict[str, Any] | None, int, int | None]:
        """The last evaluation of the run's own questions and its step, and the collapse guard's
        state, of metrics.jsonl."""
        try:
            lines = read_metrics(self.folder)
        except RunError:
            return None, 0, None
        evaluated = [x for x in lines if "eval_accuracy" in x and "eval_other_data" not in x]
        own = [line for line in evaluated if line["step"] == self.step_of_weights] or evaluated
        states = [line[COLLAPSE] for line in lines if line.get(COLLAPSE) is not None]
        state = int(states[-1]) if states else None
        if not own:
            return None, 0, state
        found = {key.removeprefix("eval_"): x for key, x in own[-1].items() if key[:5] == "eval_"}
        return found, own[-1]["step"], state

    def _settings(self) -> dict[str, Any]:
        """Settings without defaults, secrets and places."""
        defaults = {f.name: f.default for f in fields(self.args)}
        given = self.args.resolved()  # all of it: a secret is known by its setting
        told = yaml.safe_load(manifest(given, None, self.args.seed, (), {}))["config"]
        return {
            name: value if name in _TEXTS else _without_places(value)
            for name, value in told.items()
            if name not in _LEFT_OUT
            and not name.startswith(("hub_", "eval_", "save_", "logging_", "vllm_server"))
            and (name in _ALWAYS or given[name] != defaults.get(name))
            and value is not None
            and value != []
        }


def _say_more(card: Path, license: str | None, tags: Sequence[str]) -> None:
    """Adds to the head of a card."""
    head: dict[str, Any] = metadata_load(card) or {}
    head["tags"] = list(dict.fromkeys([*head.get("tags", ()), *tags]))
    metadata_save(card, head | ({"license": license} if license else {}))


def _is_edited(repo_id: str, at: Mapping[str, Any]) -> bool:
    """Whether a repository has a card of somebody's own."""
    if not file_exists(repo_id, NAME, **at):
        return False
    return not is_ours(Path(hf_hub_download(repo_id, NAME, **at)))


def _without_places(value: Any) -> Any:
    """A setting with the last name in place of each path: of a whole text or of a word in it."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _last(value) if _is_path(value) else _WORD.sub(_word, value)


def _word(found: re.Match[str]) -> str:
    return _last(found[0]) if _is_path(found[0]) else found[0]


def _is_path(text: str) -> bool:
    inside = "/" in text or os.sep in text
    return _PATH.match(text) is not None or (inside and os.path.exists(text))


def _last(path: str) -> str:
    """The last name of a path, of whatever system."""
    return re.split(r"[/\\]+", path.rstrip("/"))[-1]
