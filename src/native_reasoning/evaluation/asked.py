"""The model that is asked: its weights once, and its tokenizer as it is and with a boundary."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from native_reasoning.config.errors import ConfigError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.template import Template
from native_reasoning.model.policy import (
    knows_tags,
    load_merged,
    load_tokenizer,
    read_text,
    template_for,
)


@dataclass(frozen=True, eq=False)
class Asked:
    """A model with its ``tokenizer`` untouched, and the ``template`` of another copy of it (None
    where nothing is ever put between question and answer)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template | None

    @property
    def closes_by_text(self) -> bool:
        """Whether a text stands between trace and answer."""
        return self.template is not None and self.template.boundary.closes_by_text


def load_asked(name: str, config: NRTConfig, modes: Sequence[str]) -> Asked:
    """Loads a hub id or folder, in the precision that its weights were saved in unless the settings
    say otherwise, as lm-eval does.

    Boundary "auto" is a pair of think tokens that the model knows, else the boundary text: tokens
    that were only just added mean nothing to it. Raises PolicyError, TemplateError, ConfigError.
    """
    if config.boundary == "new":
        raise ConfigError(
            "boundary is 'new'",
            why="a model that was not trained on these tokens knows nothing of them",
            fix="--boundary auto or text, or train the model first",
        )
    config.model_init_kwargs = {"dtype": "auto", **(config.model_init_kwargs or {})}  # type: ignore[dict-item]
    tokenizer, copy = (_tokenizer(name, config) for _ in range(2))
    model = load_merged(name, config, len(tokenizer)).to(config.device).eval()  # type: ignore[arg-type]
    boundary = config.boundary
    if boundary == "auto":
        boundary = "existing" if knows_tags(model, tokenizer, config) else "text"
    asked = "on" in modes or (boundary == "existing" and "off" in modes)
    return Asked(model, tokenizer, template_for(model, copy, config, boundary) if asked else None)


def _tokenizer(name: str, config: NRTConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(name, config.trust_remote_code)
    if config.chat_template_path is not None:
        tokenizer.chat_template = read_text(config.chat_template_path)
    return tokenizer
