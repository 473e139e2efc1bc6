"""lm-eval's model with a trace between question and answer.

lm-eval hands over a *context* (the question with its examples, perhaps in a chat template) and
either a continuation to score or stop sequences to generate up to. What stands between them:

    context [<think>] trace </think> gap answer

The context is encoded as lm-eval's ``hf`` does. The opening tag is added unless the context ends
with it: the chat template of a trained model opens the trace where the assistant's turn begins, a
context without chat template does not. The trace is sampled ids, never decoded and encoded again;
it ends with the tag, forced in where it did not close itself. The answer is encoded as in training:
white space before a continuation belonged to the edge of the context, where the boundary stands
now, and is left away. With thinking off the trace is empty.

Everything else (batches, padding, stop sequences, argmax, sums) is lm-eval's own ``HFLM``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from transformers import PreTrainedModel

from native_reasoning.config.errors import ConfigError
from native_reasoning.data.rows import Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import left_pad
from native_reasoning.rollout.engine import NoiseKey, Sampling, traces_of
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import BENCHMARKS
from native_reasoning.scoring.capabilities import capabilities_of

_HFLM: Any = HFLM  # whose decorator hides its type
_normalised: Any = normalize_gen_kwargs  # whose result promises no key


@dataclass(frozen=True)
class Thought:
    """What an answer is conditioned on: ``ids`` of context, trace, tag and gap; the trace as
    ``text``, its ``length`` in tokens without tag, and whether it closed itself."""

    ids: tuple[int, ...]
    text: str
    length: int
    closed: bool


class ThinkingLM(_HFLM):
    """``HFLM`` that puts a trace before each answer; an empty one where ``sampling`` is None.

    The trace of a context depends on (seed, context) alone, whatever the batch, the task or the
    limit: all choices of a question are scored after the same one. ``loglikelihood_rolling`` and
    empty contexts hold no question and are left to ``HFLM``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        template: Template,
        *,
        sampling: Sampling | None,
        seed: int = 0,
        batch_size: int = 1,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=template.tokenizer, batch_size=batch_size)
        self.template, self.sampling, self.seed = template, sampling, seed
        self.thoughts: dict[str, Thought] = {}
        self._at_once = batch_size
        self._engine = None
        if sampling is not None:
            self._engine = HFEngine(
                model,
                template.stop_trace,
                template.vocabulary,
                share=capabilities_of(model, template, layouts=()).share,
            )

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether it is the greedy choice) of each continuation."""
        pairs: Any = [request.args for request in requests]
        self._think(
            (context, len(self._answer_ids(answer))) for context, answer in pairs if context
        )
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text of each answer up to a stop sequence."""
        pairs: Any = [request.args for request in requests]
        self._think(
            (context, _normalised(options, self.max_gen_toks)["max_gen_toks"])
            for context, options in pairs
        )
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    # -- where HFLM encodes ------------------------------------------------------------------------

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return list(self.thoughts[context].ids), self._answer_ids(continuation)

    def tok_batch_encode(
        self, strings: Sequence[str], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (contexts, longest) that generation starts from, padded on the left. What
        is too long was cut before the trace was sampled."""
        ids, mask = left_pad([self.thoughts[s].ids for s in strings], torch.device("cpu"))
        return ids.masked_fill(mask == 0, self.tokenizer.pad_token_id), mask

    def _answer_ids(self, continuation: str) -> list[int]:
        """A continuation in ids as it follows the boundary, without an end of turn."""
        text = continuation.lstrip() or continuation
        return list(self.template.answer_ids(text)[:-1])

    # -- traces ------------------------------------------------------------------------------------

    def _prompt(self, context: str, room: int) -> list[int]:
        """The context and the opening tag, cut on the left so that trace, tag and an answer of
        ``room`` tokens fit. Raises ConfigError where they do not."""
        t = self.template
        opening = t.boundary.open_text
        added = () if context.endswith(opening) else t.encode([(opening, False)])
        longest = self.sampling.max_tokens if self.sampling is not None else 0
        after = longest + len(t.boundary.close_ids) + len(t.gap_ids) + room
        left = self.max_length - after - len(added)
        if left < 1:
            raise ConfigError(
                f"the model has {self.max_length:,} positions, and a trace of {longest:,} tokens "
                f"with an answer of {room:,} leaves none for the question",
                why="the question would be cut off",
                fix="a smaller --max-trace-length, or --gen-kwargs max_gen_toks=256",
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return [*ids[-left:], *added]

    def _think(self, answers: Iterable[tuple[str, int]]) -> None:
        """A thought for each context, with room for its longest answer, given in tokens."""
        room: dict[str, int] = {}
        for context, length in answers:
            room[context] = max(room.get(context, 0), length)
        prompts = {context: self._prompt(context, length) for context, length in room.items()}
        order = sorted(prompts, key=lambda context: len(prompts[context]))  # little padding
        traces = Traces((self.template.empty_trace(),) * len(order), (True,) * len(order))
        if self._engine is not None and self.sampling is not None:
            longest = max(map(len, prompts.values()), default=0) + self.sampling.max_tokens
            self._engine.max_tokens = self._at_once * longest
            samples = self._engine.sample(
                [prompts[context] for context in order],
                [row_of(context) for context in order],
                self.sampling,
                NoiseKey(self.seed, 0, BENCHMARKS),
                self.template.stop_trace,
            )
            traces = traces_of([sample for (sample,) in samples])
        lengths = self.template.trace_lengths(traces)
        rows = zip(order, traces.ids, traces.closed, lengths, strict=True)
        for context, ids, closed, length in rows:
            before = tuple(self.template.answer_prompt(prompts[context], ids, closed))
            self.thoughts[context] = Thought(before, self.template.text(ids), length, closed)


def row_of(context: str) -> int:
    """The row of a context in the stream of random numbers: 63 bits of its hash."""
    return int.from_bytes(sha256(context.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
