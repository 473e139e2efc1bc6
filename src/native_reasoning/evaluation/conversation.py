"""A conversation with a model: what it thinks and answers to each turn, as it was trained to.

Prompts are those of training, an unfinished trace is closed by force as in training and evaluation,
and later turns do not show earlier reasoning. With a reference answer, each reply says how likely
the model finds that one after its trace and after none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedModel

from native_reasoning.config.errors import DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import inference
from native_reasoning.model.policy import context_of
from native_reasoning.rollout.engine import NoiseKey, Sampling, Stop, sample_answers, traces_of
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import ANSWERS, CONVERSATION
from native_reasoning.scoring.capabilities import capabilities_of
from native_reasoning.scoring.scorer import Scorer

#: Takes "reasoning" or "answer" for each token of it, and the text that has come since the last.
Listener = Callable[[str, str], None]


@dataclass(frozen=True)
class Reply:
    """One trace and the answer after it, in text.

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
        self.engine = HFEngine(model, stop, vocabulary, way=able.sampling)
        self.turns: list[tuple[str, str]] = []

    def forget(self) -> None:
        """Begins anew."""
        self.turns = []

    def ask(
        self,
        question: str,
        *,
        think: bool = True,
        traces: int = 1,
        reference: str | None = None,
        listen: Listener | None = None,
    ) -> list[Reply]:
        """``traces`` replies to a user's turn; the first becomes a part of the conversation.

        ``think`` False answers after the empty trace. ``listen`` hears a single reply while it is
        written. Raises DataError where the conversation does not fit into the model, and
        TemplateError where the chat template refuses it.
        """
        turns = (*self.turns, ("user", question))
        example = Example(turns, reference or "", row_id=len(turns), line=1)
        group = self.template.group(example)
        hear, room = listen if traces == 1 else None, self._room(group)
        thought = self._think(group, traces, room, hear) if think else self._empty(traces)
        answers = self._answer(group, thought, hear)
        logps = self._score(group, thought) if reference is not None else [(None, None)] * traces
        lengths = self.template.trace_lengths(thought)
        replies = [
            Reply(
                reasoning=self.template.text(ids).strip() if think else None,
                tokens=length if think else 0,
                closed=closed,
                answer=answer,
                ended=ended,
                logp=logp,
                logp_no_think=without,
            )
            for ids, closed, length, (answer, ended), (logp, without) in zip(
                thought.ids, thought.closed, lengths, answers, logps, strict=True
            )
        ]
        self.turns = [*turns, ("assistant", replies[0].answer)]
        return replies

    def _think(self, group: PromptGroup, traces: int, room: int, listen: Listener | None) -> Traces:
        c = self.config
        (samples,) = self.engine.sample(
            [group.prompt_ids],
            [group.example.row_id],
            Sampling(traces, room, c.temperature, c.top_p),
            NoiseKey(c.seed, 0, CONVERSATION),
            self._heard(self.template.stop_trace, "reasoning", listen),
        )
        return traces_of(samples)

    def _empty(self, traces: int) -> Traces:
        return Traces((self.template.empty_trace(),) * traces, (True,) * traces)

    def _answer(
        self, group: PromptGroup, traces: Traces, listen: Listener | None
    ) -> list[tuple[str, bool]]:
        """Text after each trace, and whether it ended itself."""
        c = self.config
        (samples,) = sample_answers(
            self.engine,
            self.template,
            [group],
            [traces],
            Sampling(1, c.max_answer_length, c.temperature, c.top_p),
            NoiseKey(c.seed, 0, ANSWERS),
            stop=self._heard(self.template.stop_answer, "answer", listen),
        )
        return [(self.template.text(s.ids).strip(), s.stopped == "ended") for s in samples]

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

    def _score(self, group: PromptGroup, traces: Traces) -> list[tuple[float, float]]:
        """The mean log-probability of a token of the reference after each trace, and after none."""
        scorer = Scorer(self.template, self.model.device, 1.0, ("rows",), 0.0)
        with inference(self.model):
            (scores,) = scorer(self.model, [group], [traces])
        without = fmean(scores.baseline.tolist())
        return [(fmean(row), without) for row in scores.answer.tolist()]
