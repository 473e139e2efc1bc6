"""What a saved model has besides weights and tokenizer: its card, and a warning where servers
cannot do with it what one might expect. And its way to the hub."""

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import create_repo, upload_folder

from native_reasoning.adapters import has_adapter
from native_reasoning.card import Base, Facts, find_base, write_card
from native_reasoning.data import DataReport
from native_reasoning.errors import RunError, warn
from native_reasoning.evaluating import Evaluating
from native_reasoning.groups import data_hash
from native_reasoning.manifest import manifest, versions
from native_reasoning.names import COLLAPSE
from native_reasoning.options import COMMON_ARGUMENTS
from native_reasoning.presets import find_preset
from native_reasoning.records import read_metrics
from native_reasoning.types import PromptGroup

#: Settings that are about the machine or the place, or that have a line of their own.
_LEFT_OUT = {
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
        if self.args.should_save:
            write_card(folder, self._facts())

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        """Uploads the model as it is now, with its card, to ``hub_model_id`` (or a repository named
        as the run folder), and nothing else: the run folder holds prompts, answers and traces.

        Returns what ``huggingface_hub.upload_folder`` does, on the process that saves, else None.
        """
        with TemporaryDirectory() as folder:
            self.save_model(folder)
            if not self.is_world_process_zero():
                return None
            token = token or self.args.hub_token
            private = self.args.hub_private_repo if private is None else private
            name = self.args.hub_model_id or self.folder.name
            made = create_repo(name, token=token, private=private, exist_ok=True)
            return upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message=commit_message,
                token=token,
                revision=revision or self.args.hub_revision,
            )

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
        short = Path(name).name if Path(name).is_absolute() else name
        return short, report.kept, report.read, data_hash(self.train_groups)

    def _facts(self) -> Facts:
        evaluation, at, collapse = self._measured()
        custom = [self.given.get("objective"), *self.given.get("reward_funcs", ())]
        custom += [self.args.objective, *(self.args.reward_funcs or ())]
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
        """The last evaluation and its step, and the collapse guard's state, of metrics.jsonl."""
        try:
            lines = read_metrics(self.folder)
        except RunError:
            return None, 0, None
        evaluated = [line for line in lines if "eval_accuracy" in line]
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
        kept = {
            name: value
            for name, value in self.args.resolved().items()
            if name not in _LEFT_OUT
            and not name.startswith(("hub_", "eval_", "save_", "logging_", "vllm_server"))
            and (name in _ALWAYS or value != defaults.get(name))
            and value is not None
        }
        told = yaml.safe_load(manifest(kept, None, self.args.seed, (), {}))["config"]
        return {name: value for name, value in told.items() if value != []}
