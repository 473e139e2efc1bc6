"""What forwards the model beside its training: to sample, to score, and whole where it is cut."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from accelerate import Accelerator

from native_reasoning.config.nrt_config import NRTConfig, model_dtype
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.model.gathered import stand_in
from native_reasoning.model.policy import Policy
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.vllm import longest, training_engine
from native_reasoning.scoring.capabilities import capabilities_of, checkpointing
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.packing import LAYOUTS
from native_reasoning.scoring.scorer import Scorer, install_scoring, rounding_of


class Forwards:
    """Made of a ``policy`` before FSDP or DeepSpeed cut it, after trying out what it can do.

    ``engine`` samples from the policy itself, ``sampler`` the traces that are trained on: vLLM
    where it is asked for. ``scorer`` scores in one of ``layouts``; ``left_out`` says why the others
    are not used. ``copy`` stands in for a model that is cut, wherever no gradient is needed.
    ``judges`` are the copies of the policy that the objective asks.

    Raises PolicyError for a model that cannot be scored or sampled from, ConfigError for what does
    not work with cut weights.
    """

    def __init__(
        self,
        policy: Policy,
        args: NRTConfig,
        settings: ObjectiveSettings,
        accelerator: Accelerator,
    ) -> None:
        self.accelerator = accelerator
        model, template = policy.model, policy.template
        install_scoring(model)  # before the copy, which scores too
        self.copy = stand_in(model, accelerator, lagging=settings.needs_ema)
        #: Activation checkpointing drops caches, and hooks that make weights whole for one layer's
        #: forward do not expect another one.
        once = args.activation_checkpointing or self.copy is not None
        dtype = model_dtype(args) if args.bf16 or args.fp16 else model.dtype
        with checkpointing(model, args):
            able = capabilities_of(
                model,
                template,
                layouts=[way for way in LAYOUTS if way != "shared" or not once],
                training=True,
                arithmetic=self.autocast,
                dtype=dtype,
                longest=longest(args, model),
            )
        self.layouts, self.left_out = able.layouts, able.left_out
        self.engine = HFEngine(
            model if self.copy is None else self.copy.model,
            template.stop_trace,
            template.vocabulary,
            share=able.share,
            batch_size=args.rollout_batch_size,
            autocast=self.autocast,
        )
        self.sampler = training_engine(self.engine, args, template, accelerator)
        self.scorer = Scorer(
            template,
            args.device,
            args.temperature,
            self.layouts,
            rounding_of(dtype),
            model.config.get_text_config().hidden_size,
        )
        self.judges = None
        if settings.needs_frozen or settings.needs_ema:
            self.judges = Judges(model, settings, self.scorer, autocast=self.autocast)

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the run."""
        return self.accelerator.autocast()

    @contextmanager
    def whole(self, wrapped: Any) -> Generator[Any]:
        """The model for forwards without gradients, of which each rank may make its own number."""
        if self.copy is None:
            yield wrapped
            return
        cut = self.accelerator.unwrap_model(wrapped)
        with self.copy.filled(cut) as model, self.autocast():
            yield model
