"""What forwards the model beside its training: to sample, to score, and whole where it is cut; and
what a step takes."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from native_reasoning.config.nrt_config import NRTConfig, model_dtype
from native_reasoning.config.settings import ObjectiveSettings
from native_reasoning.model.policy import Policy
from native_reasoning.model.ranks import stand_in
from native_reasoning.records.folder import read_timings
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.vllm import longest, training_engine
from native_reasoning.scoring.capabilities import capabilities_of, checkpointing
from native_reasoning.scoring.judges import Judges
from native_reasoning.scoring.packing import LAYOUTS
from native_reasoning.scoring.scorer import Scorer, install_scoring, rounding_of
from native_reasoning.training.memory import Memory


class Forwards:
    """Made of a ``policy`` before FSDP or DeepSpeed cut it, after trying out what it can do.

    ``engine`` samples from the policy itself, ``sampler`` the traces that are trained on: vLLM
    where it is asked for. ``scorer`` scores in one of ``layouts``; ``left_out`` says why the others
    are not used. ``copy`` stands in for a model that is cut, wherever no gradient is needed.
    ``judges`` are the copies of the policy that the objective asks, ``memory`` says how much is
    forwarded at once.

    Raises PolicyError for a model that cannot be scored or sampled from, ConfigError for what does
    not work with cut weights.
    """

    def __init__(
        self, policy: Policy, args: NRTConfig, settings: ObjectiveSettings, accelerator: Accelerator
    ) -> None:
        self.accelerator = accelerator
        arithmetic: Any = accelerator.autocast
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
                arithmetic=arithmetic,
                dtype=dtype,
                longest=longest(args, model),
            )
        self.layouts, self.left_out = able.layouts, able.left_out
        self.engine = HFEngine(
            model if self.copy is None else self.copy.model,
            template.stop_trace,
            template.vocabulary,
            share=able.share,
            autocast=arithmetic,
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
        self.memory = Memory(args, self.scorer, self.engine)
        self.judges = None
        if settings.needs_frozen or settings.needs_ema:
            self.judges = Judges(model, settings, self.scorer, autocast=arithmetic)

    @contextmanager
    def whole(self, wrapped: Any) -> Generator[Any]:
        """The model for forwards without gradients, of which each rank may make its own number."""
        if self.copy is None:
            yield wrapped
            return
        cut = self.accelerator.unwrap_model(wrapped)
        with self.copy.filled(cut) as model, self.accelerator.autocast():
            yield model


# -- What a step takes (``nrt train --dry-run``, ``nrt check --sample``) ---------------------------


#: Settings of that step: nothing of it is kept, and nobody is told.
ONE_STEP = {
    "max_steps": 1,
    "eval_strategy": "no",
    "eval_on_start": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "record_traces": False,
    "report_to": "none",
}


def full_step(trainer: Any) -> dict[str, float | None]:
    """Trains one step on the longest rows, with traces that all run to ``max_trace_length``, and
    says what it took on this rank: ``seconds_per_step``, and the bytes of ``memory`` at its peak,
    those of the process on a CPU (None where the system does not say), those that torch has
    reserved on a GPU. ``trainer``, an NRTTrainer of ``ONE_STEP``, is of no use afterwards."""
    trainer.collector.take_longest()
    cuda = trainer.args.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.forwards.sampler.stop = lambda ids: None
    trainer.train()
    # of the step alone: what comes once in a run is not multiplied by its steps; one rank writes it
    steps = [x["step_seconds"] for x in read_timings(trainer.folder) if "step_seconds" in x]
    peak = torch.cuda.max_memory_reserved() if cuda else _peak_of_process()
    return {"seconds_per_step": sum(steps), "memory": peak}


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
