"""Rows as another trainer keeps them, and our own scores of the same prompts and traces."""

from dataclasses import dataclass

import torch
from torch import Tensor

import tiny
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import Template, make_template
from native_reasoning.integrations.spliced import (
    Layout,
    Spliced,
    SplicedRows,
    splice,
    splice_nothing,
)
from native_reasoning.objective.types import Scores
from native_reasoning.scoring.packing import pack
from native_reasoning.scoring.scorer import install_scoring, unpack

ROUNDING = 1e-12


def with_gap() -> Template:
    tokenizer = tiny.byte_tokenizer(think=True)
    tokenizer.chat_template = tiny.QWEN3
    return make_template(tokenizer, boundary="existing")


GAP = with_gap()
TEXT = make_template(tiny.byte_tokenizer(), boundary="text")


def prompt(template: Template, question: str, answer: str) -> PromptGroup:
    return template.group(Example((("user", question),), answer, row_id=0, line=1))


def batch(template: Template) -> tuple[tuple[PromptGroup, ...], tuple[Traces, ...]]:
    """Two prompts of three traces: closed, open, empty and open, empty and closed."""
    tag = template.boundary.close_ids
    groups = (prompt(template, "2 + 2?", "4"), prompt(template, "A colour", "It is red."))
    traces = (
        Traces(((61, 62, 63, *tag), (64, 65), ()), (True, False, False)),
        Traces((tag, (70, 71, 72, 73, 74, *tag), (75,)), (True, True, False)),
    )
    return groups, traces


@dataclass(frozen=True)
class Batch:
    """Responses of a batch with the prompt of each: its empty trace first, then its traces."""

    prompts: list[tuple[int, ...]]
    responses: list[Spliced]
    names: list[str]

    @property
    def layouts(self) -> list[Layout]:
        return [one.layout for one in self.responses]

    @property
    def sampled(self) -> Tensor:
        """(R, W) True where a token was sampled."""
        return self.laid_out([torch.tensor(one.sampled).bool() for one in self.responses])

    @staticmethod
    def laid_out(rows: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def logps(self, model, vocabulary: int) -> Tensor:
        """(R, W) from a plain forward of each row."""
        rows = []
        for prompt_ids, response in zip(self.prompts, self.responses, strict=True):
            ids = torch.tensor([*prompt_ids, *response.ids])
            every = model(input_ids=ids[None]).logits[0, :-1, :vocabulary].log_softmax(-1)
            chosen = every.gather(-1, ids[1:, None])[:, 0]
            rows.append(chosen[len(prompt_ids) - 1 :])
        return self.laid_out(rows)

    def rows(self, logps: Tensor, reference: Tensor | None = None) -> SplicedRows:
        return SplicedRows(logps, self.layouts, self.names, reference)


def spliced(template: Template, groups, traces) -> Batch:
    made = Batch([], [], [])
    for g, (group, sampled) in enumerate(zip(groups, traces, strict=True)):
        pairs = zip(sampled.ids, sampled.closed, strict=True)
        responses = [splice_nothing(template, group), *(splice(template, group, *p) for p in pairs)]
        made.responses.extend(responses)
        made.prompts.extend([group.prompt_ids] * len(responses))
        made.names.extend([f"prompt {g}"] * len(responses))
    return made


def model(seed: int = 0):
    """A model in float64."""
    return tiny.tiny_model("llama", seed).double().eval()


def own_scores(scorer, template: Template, groups, traces) -> list[Scores]:
    """What the package's own forward makes of the same."""
    install_scoring(scorer)
    packed = pack(groups, traces, template)
    return unpack(packed, scorer(score=packed.batch), template, ROUNDING)
