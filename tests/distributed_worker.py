"""One rank of tests/slow/test_distributed.py: trains, and saves what the rank saw."""

import json
import operator
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.demo import base_path, make_rows
from native_reasoning.model.ranks import whole
from native_reasoning.training.trainer import NRTTrainer
from pretended import SamplingLLM, install
from tiny import QA, byte_tokenizer, tiny_model


def cut_on_a_cpu() -> None:
    """accelerate leaves FSDP and DeepSpeed out on CPUs, where both run; this is what it does on a
    GPU."""
    original, given = AcceleratorState.__init__, {}

    def init(self, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
        both = {"fsdp_plugin": fsdp_plugin, "deepspeed_plugin": deepspeed_plugin}
        original(self, *args, **both, **kwargs)
        given.update({name: plugin for name, plugin in both.items() if plugin is not None})
        if "fsdp_plugin" in given:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, given["fsdp_plugin"]
        if fsdp_plugin is not None and self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)
        if "deepspeed_plugin" in given:
            self.distributed_type = DistributedType.DEEPSPEED
            self.deepspeed_plugins = given["deepspeed_plugin"]
        if deepspeed_plugin is not None:
            deepspeed_plugin.set_mixed_precision("no")
            deepspeed_plugin.select(_from_accelerator_state=True)

    AcceleratorState.__init__ = init


class KeepGradient(TrainerCallback):
    """Saves the gradient of the first step, as the optimiser would see it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            grads = [whole(p.grad).flatten() for p in model.parameters() if p.grad is not None]
            torch.save(torch.cat(grads) if grads else None, self.path)


def trained(trainer: NRTTrainer) -> torch.Tensor:
    """A copy of all weights that are trained."""
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    return torch.cat([whole(p).detach().flatten() for p in weights]).clone()


def train(
    folder: str,
    lab: bool,
    rows: int,
    resume: str | None = None,
    tied: bool = False,
    policy: str | None = None,
    vllm: bool = False,
    **settings,
) -> None:
    """One run into ``folder``/run; the first step's gradient and the weights before and after.
    ``policy``: the precision whose mixed-precision policy accelerate would have given to FSDP.
    ``vllm``: a pretended one samples."""
    if vllm:
        install(operator.setitem, setattr, SamplingLLM())
    data = make_rows("short_answer", "train", 12, seed=5) if lab else QA
    args = NRTConfig(
        output_dir=f"{folder}/run",
        num_generations=3,
        max_trace_length=10 if lab else 6,
        max_answer_length=12,
        learning_rate=1e-3,
        adam_epsilon=1e-8,
        save_total_limit=None,
        use_vllm=vllm,
        **{"gradient_accumulation_steps": 1, "max_grad_norm": 0, "use_cpu": True, **settings},
    )
    rank, place = args.process_index, Path(folder)
    place.mkdir(exist_ok=True)
    trainer = NRTTrainer(
        str(base_path()) if lab else tiny_model(tie_word_embeddings=tied),
        args,
        data[:rows],
        data[:3],
        None if lab else byte_tokenizer(),
        callbacks=[KeepGradient(place / f"gradient-{rank}.pt")],
    )
    if policy is not None:
        trainer.accelerator.state.fsdp_plugin.set_mixed_precision(policy, override=True)
    first = trained(trainer)
    trainer.train(resume_from_checkpoint=resume)
    torch.save((first, trained(trainer)), place / f"weights-{rank}.pt")
    if settings["max_steps"] == 3:
        torch.save(trainer.evaluate(), place / f"metrics-{rank}.pt")
    trainer.save_model(f"{folder}/final")


def main(runs: list[dict]) -> None:
    torch.set_num_threads(1)
    cut_on_a_cpu()
    for settings in runs:
        train(**settings)
    PartialState().destroy_process_group()  # gloo's threads must not outlive the interpreter


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
