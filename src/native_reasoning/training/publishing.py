"""What a saved model has besides weights and tokenizer: its card, and a warning where servers
cannot do with it what one might expect."""

from pathlib import Path
from typing import Any

from native_reasoning.config.errors import ConfigError, warn
from native_reasoning.records.card import write_card
from native_reasoning.records.folder import CONFIG
from native_reasoning.training.evaluating import Evaluating


class Publishing(Evaluating):
    """A Trainer whose saved models say what they are. Abstract, as ``Evaluating``."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.args.output_dir))

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
        """README.md of a saved model, as much as is known by now, on the process that saves; none
        of a model that no run has trained."""
        if not self.args.should_save or not (self.folder / CONFIG).is_file():
            return
        try:
            write_card(folder, self.folder, self.step_of_weights)
        except Exception as error:  # of whatever a card is made of: a model is worth more than it
            reason = f"{type(error).__name__}: {error}"
            warn(f"{folder.name} has no new model card (README.md), which needs {reason}")

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Raises ConfigError: a saved model is uploaded by the hub's own command."""
        raise ConfigError(
            "NRTTrainer has no push_to_hub",
            why="transformers uploads the run folder, with every prompt, answer and trace",
            fix="trainer.save_model(FOLDER), then: hf upload OWNER/NAME FOLDER",
        )
