"""The policy's weights on their way to vLLM, through TRL's ``VLLMGeneration``.

Taken from TRL is ``sync_weights``: waking vLLM, loading weight by weight in this process or sending
them to a server over NCCL, and emptying the cache of prefixes. Not taken: its ``generate``, which
has one ``SamplingParams`` for all prompts and so no seed for each trace; its way of starting vLLM,
which reads weights and vocabulary from the model's folder; its way of reading weights, which knows
adapters only in peft's wrapper, and gathers cut weights a second time: where FSDP or DeepSpeed cut
the model, what samples is a whole copy of it already (ranks.py), and the weights are those of
the copy. Imports TRL: import this where vLLM is asked for.
"""

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel
from trl.generation.vllm_generation import VLLMGeneration

from native_reasoning.model.adapters import has_adapter, merged_weights


class WeightSync(VLLMGeneration):
    """Brings the weights of ``model`` to ``llm``, a ``vllm.LLM`` of this process, or through
    ``client``, TRL's ``VLLMClient``. ``vocabulary``: vLLM has so many rows of embedding and head,
    None for as many as the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        accelerator: Accelerator,
        *,
        llm: Any = None,
        client: Any = None,
        vocabulary: int | None = None,
        sleeps: bool = False,
    ) -> None:
        self.llm, self.vllm_client, self.vocabulary = llm, client, vocabulary
        super().__init__(
            model,
            accelerator,
            processing_class=None,  # type: ignore[arg-type]
            mode="colocate" if client is None else "server",
            enable_sleep_mode=sleeps,
        )

    def _init_vllm(self) -> None:
        """vLLM runs already."""

    def _iter_named_params(self) -> Iterator[tuple[str, Tensor]]:  # type: ignore[override]
        model: Any = self.model
        tables = {model.get_input_embeddings(), model.get_output_embeddings()}
        cut = tuple(f"{name}." for name, module in model.named_modules() if module in tables)
        named = merged_weights(model) if has_adapter(model) else model.named_parameters()
        for name, weight in named:
            own = weight.detach()
            yield name, own[: self.vocabulary] if name.startswith(cut) else own
