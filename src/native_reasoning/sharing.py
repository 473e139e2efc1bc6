"""Whether a prompt can be forwarded once for all its rows, tried out on this architecture; and what
samples from a model outside training."""

from transformers import PreTrainedModel

from native_reasoning.inputs import trial_length, tried
from native_reasoning.layouts import LAYOUTS
from native_reasoning.packing import pack
from native_reasoning.rollout.decoders import shares_prompts
from native_reasoning.rollout.hf import HFEngine, check_decoding
from native_reasoning.scoring import install_scoring, rounding_of
from native_reasoning.template import Template
from native_reasoning.types import Example, PromptGroup, Traces


def usable_layouts(model: PreTrainedModel, template: Template) -> list[str]:
    """The layouts of a forward that are right on this architecture."""
    return [way for way in LAYOUTS if way == "rows" or can_share_prompts(model, template, way)]


def can_share_prompts(model: PreTrainedModel, template: Template, layout: str = "shared") -> bool:
    """Tries a layout that forwards the prompt once (layouts.py) against plain rows on this
    architecture: True if they agree.

    Caches of linear-attention layers cannot be repeated, for one.
    """
    config = model.config.get_text_config()
    kernel = config._attn_implementation  # pyright: ignore[reportPrivateUsage]  (no public one)
    if layout == "packed" and kernel not in ("eager", "sdpa"):
        return False  # other kernels do not take a mask of four dimensions
    length = trial_length(model)
    usable = [i for i in range(template.vocabulary) if i not in template.control_ids][:97]
    prompt = tuple(usable[(7 * i) % len(usable)] for i in range(length))
    example = Example((("user", ""),), "", row_id=0, line=0)
    groups = [
        PromptGroup(example, prompt, (*usable[:3], template.end_ids[0])),
        PromptGroup(example, prompt[: length // 2], (usable[0], template.end_ids[0])),
    ]
    traces = [Traces(((usable[1], usable[2]), (usable[3],)), (False, False))] * 2

    def trial() -> bool:
        one, plain = (
            model(score=pack(groups, traces, template, model.device, layouts=(way,)).batch)
            for way in (layout, "rows")
        )
        # mistakes are above 0.03
        tolerance = min(100 * rounding_of(next(model.parameters()).dtype), 0.01)
        return bool((one - plain).abs().mean() <= tolerance * plain.abs().mean())

    return tried(model, trial)


def engine_for(
    model: PreTrainedModel, template: Template, batch_size: int | None = None
) -> HFEngine:
    """What samples traces from a model that is not trained, as training would on this architecture.

    Raises PolicyError where it cannot be sampled from a cache.
    """
    install_scoring(model)
    check_decoding(model, template.vocabulary)
    repeat = can_share_prompts(model, template)
    return HFEngine(
        model,
        template.stop_trace,
        template.vocabulary,
        repeat_cache=repeat,
        batch_size=batch_size,
        share=repeat and shares_prompts(model, template.vocabulary),
    )
