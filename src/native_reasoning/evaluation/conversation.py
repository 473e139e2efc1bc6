"""A model that is asked, and a conversation with it: what it thinks and answers to each turn.

Prompts are those of training, an unfinished trace is closed by force as in training and evaluation,
and later turns do not show earlier reasoning. With a reference answer, each reply says how likely
the model finds that one after its trace and after none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from native_reasoning.config.errors import ConfigError, DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import inference
from native_reasoning.model.policy import (
    context_of,
    knows_tags,
    load_merged,
    load_tokenizer,
    template_for,
)
from native_reasoning.rollout.engine import NoiseKey, Sample, Sampling, Stop, traces_of
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import ANSWERS, CONVERSATION
from native_reasoning.scoring.capabilities import capabilities_of
from native_reasoning.scoring.scorer import Scorer


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
    tokenizer, copy = (load_tokenizer(name, config) for _ in range(2))
    model = load_merged(name, config, len(tokenizer)).to(config.device).eval()  # type: ignore[arg-type]
    boundary = config.boundary
    if boundary == "auto":
        boundary = "existing" if knows_tags(model, tokenizer, config) else "text"
    asked = "on" in modes or (boundary == "existing" and "off" in modes)
    return Asked(model, tokenizer, template_for(model, copy, config, boundary) if asked else None)


# -- Turns -----------------------------------------------------------------------------------------

#: Takes "reasoning" or "answer" for each token of it, and the text that has come since the last.
Listener = Callable[[str, str], None]


@dataclass(frozen=True)
class Reply:
    """A trace and the answer after it, in text.

    ``reasoning`` is None where none was asked for; ``tokens`` are those of it, without the tag.
    ``closed``: the model closed it itself. ``ended``: the answer ended itself. ``logp`` and
    ``logp_no_think`` are the mean log-probability of a token of the reference after this trace and
    after the empty one (nats per token); None without a reference.
    """

    reasoning: str | None
    tokens: int
    closed: bool
    answer: str
    ended: bool
    logp: float | None = None
    logp_no_think: float | None = None


class Conversation:
    """Turns with a model whose ``template`` opens and closes traces.

    ``config`` has lengths, temperature, top-p and seed. The same turns get the same replies. Raises
    PolicyError for a model that cannot be sampled from.
    """

    def __init__(self, model: PreTrainedModel, template: Template, config: NRTConfig) -> None:
        able = capabilities_of(model, template, layouts=())  # one prompt at a time is scored
        self.model, self.template, self.config = model, template, config
        self.context = context_of(model)
        stop, vocabulary = template.stop_trace, template.vocabulary
        self.engine = HFEngine(model, stop, vocabulary, share=able.share)
        self.turns: list[tuple[str, str]] = []

    def forget(self) -> None:
        """Begins anew."""
        self.turns = []

    def ask(
        self,
        question: str,
        *,
        think: bool = True,
        reference: str | None = None,
        listen: Listener | None = None,
    ) -> Reply:
        """The reply to a user's turn; both become a part of the conversation.

        ``think`` False answers after the empty trace. ``listen`` hears the reply while it is
        written. Raises DataError where the conversation does not fit into the model, and
        TemplateError where the chat template refuses it.
        """
        t = self.template
        turns = [*self.turns, ("user", question)]
        group = t.group(Example(tuple(turns), reference or "", row_id=len(turns), line=1))
        room = self._room(group)
        trace = Traces((t.empty_trace(),), (True,))
        if think:
            hear = self._heard(t.stop_trace, "reasoning", listen)
            trace = traces_of([self._sample(group.prompt_ids, len(turns), room, hear)])
        hear = self._heard(t.stop_answer, "answer", listen)
        prompt = t.answer_prompt(group.prompt_ids, trace.ids[0], trace.closed[0])
        answer = self._sample(prompt, len(turns), self.config.max_answer_length, hear, ANSWERS)
        logp, without = (None, None) if reference is None else self._score(group, trace)
        reply = Reply(
            reasoning=t.text(trace.ids[0]).strip() if think else None,
            tokens=t.trace_lengths(trace)[0] if think else 0,
            closed=trace.closed[0],
            answer=t.text(answer.ids).strip(),
            ended=answer.stopped == "ended",
            logp=logp,
            logp_no_think=without,
        )
        self.turns = [*turns, ("assistant", reply.answer)]
        return reply

    def _sample(
        self, prompt: Sequence[int], turn: int, most: int, stop: Stop, domain: int = CONVERSATION
    ) -> Sample:
        """At most ``most`` tokens after a prompt."""
        c = self.config
        sampling = Sampling(1, most, c.temperature, c.top_p)
        key = NoiseKey(c.seed, 0, domain)
        ((sample,),) = self.engine.sample([prompt], [turn], sampling, key, stop)
        return sample

    def _room(self, group: PromptGroup) -> int:
        """Tokens that a trace may have, so that its tag and an answer follow. Raises DataError."""
        if self.context is None:
            return self.config.max_trace_length
        taken, t = len(group.prompt_ids), self.template
        room = self.context - taken - len(t.boundary.close_ids) - len(t.gap_ids) - 1
        if room < 1:
            raise DataError(
                f"the conversation is {taken} tokens long, and the model has {self.context} "
                "positions",
                why="beyond them it was not trained",
                fix="begin a new one, or ask something shorter",
            )
        return min(self.config.max_trace_length, room)

    def _heard(self, stop: Stop, part: str, listen: Listener | None) -> Stop:
        """``stop``, which also tells what was written."""
        if listen is None:
            return stop
        stream, tokenizer = DecodeStream(), self.template.tokenizer.backend_tokenizer

        def told(ids: list[int]) -> str | None:
            stopped = stop(ids)
            if stopped is None:  # a character may take several tokens: None until it is whole
                listen(part, stream.step(tokenizer, ids[-1]) or "")
            return stopped

        return told

    def _score(self, group: PromptGroup, trace: Traces) -> tuple[float, float]:
        """The mean log-probability of a token of the reference after the trace, and after none."""
        scorer = Scorer(self.template, self.model.device, 1.0, ("rows",), 0.0)
        with inference(self.model):
            (scores,) = scorer(self.model, [group], [trace])
        return fmean(scores.answer[0].tolist()), fmean(scores.baseline.tolist())
