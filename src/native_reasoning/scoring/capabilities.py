"""What a model's architecture can do, tried out once, before anything is sampled or trained.

A few rows are forwarded the plain way: each alone, without cache and padding, in eval mode. Every
faster way is compared with that, by the log-probabilities of whole continuations, in the arithmetic
of the run. A way that is off, or that raises, is not used. Where no way is left the model is
refused, and the refusal says what was off or what was raised.
"""

import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from native_reasoning.config.errors import PolicyError
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import Template
from native_reasoning.model.forward import LEAST_SHARED, WINDOWS, in_mode
from native_reasoning.model.policy import context_of
from native_reasoning.rollout.hf import Decoder, decoder_of
from native_reasoning.scoring.head import direct_head
from native_reasoning.scoring.packing import LAYOUTS, Packed, pack
from native_reasoning.scoring.scorer import install_scoring

#: How far the log-probability of a token may be off in a trial, in nats: the mean over all tokens.
#: Measured on 130 kinds, float32 rounds by up to 2e-5, and what is wrong is off by 1e-3 or more.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4}
#: The same where products are rounded to fewer bits, as bfloat16's. A shallow model is off by up to
#: 0.06. A deep one is off by more, but by less than ``GROWTH`` times what changes when its
#: embeddings are rounded once more.
COARSE, GROWTH = 0.1, 2


@dataclass(frozen=True)
class Capabilities:
    """``layouts`` of a scoring forward that are right (packing.py), and whether sampled rows may
    ``share`` their prompt (hf.py). ``left_out`` says why each other way is not used."""

    layouts: tuple[str, ...]
    share: bool
    left_out: tuple[str, ...] = ()


def capabilities_of(
    model: PreTrainedModel,
    template: Template,
    *,
    layouts: Sequence[str] = LAYOUTS,
    training: bool = False,
    arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    dtype: torch.dtype | None = None,
    longest: int | None = None,
) -> Capabilities:
    """Tries out what ``model`` can do. ``layouts`` are those that may be used: none of them where
    nothing is scored. ``training``: in train mode with gradients too. ``arithmetic`` gives the
    context that a run computes in, and ``dtype`` the type of its products; None means that of the
    weights. No row of the run has more than ``longest`` tokens.

    Raises PolicyError where the model cannot be forwarded, scored or sampled.
    """
    install_scoring(model)
    trials = _Trials(model, template, arithmetic, dtype or model.dtype, longest)
    right = tuple(layout for layout in layouts if trials.scores(layout, training))
    if layouts and not right:
        trials.refuse("scored", "rewards would not be the model's own log-probabilities")
    share = trials.samples(share=True)
    if not share and not trials.samples(share=False):
        trials.refuse("sampled", "traces would not come from the model's own probabilities")
    return Capabilities(right, share, tuple(trials.failures))


@contextmanager
def checkpointing(model: PreTrainedModel, args: TrainingArguments) -> Generator[None]:
    """Inside, the model checkpoints activations if ``args`` say that it will while it trains."""
    if not args.activation_checkpointing or model.is_activation_checkpointing:
        yield
        return
    given: Any = args.activation_checkpointing_kwargs or {}
    of_trainer = ("every_n_layers", "offload")  # the rest is for torch.utils.checkpoint
    kwargs = {name: given[name] for name in given if name not in of_trainer}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs or None)
    try:
        yield
    finally:
        model.activation_checkpointing_disable()


class _Trials:
    """Two prompts of different lengths with three continuations each, and what a plain forward of
    each row says of them."""

    def __init__(
        self,
        model: PreTrainedModel,
        template: Template,
        arithmetic: Callable[[], AbstractContextManager[Any]],
        dtype: torch.dtype,
        longest: int | None,
    ) -> None:
        self.model, self.template, self.arithmetic = model, template, arithmetic
        self.failures: list[str] = []
        self.groups, self.traces = _continuations(template, trial_length(model, longest))
        self.packed = self._packed("rows")
        batch = self.packed.batch
        lengths = batch.suffix_mask.sum(1).tolist()
        #: what follows the prompt in each row, and the prompts themselves
        self.rows = [ids[1:n] for ids, n in zip(batch.suffix.tolist(), lengths, strict=True)]
        self.prompts = [group.prompt_ids for group in self.groups]
        self.expected: list[Tensor] = []
        self.tolerance = 0.0
        if not self._agrees("a plain forward", lambda: self._plain(dtype)):
            self.refuse("forwarded", "its own probability of the answer is the reward")

    def refuse(self, what: str, why: str) -> NoReturn:
        """Raises PolicyError with what the last trial, the plainest, found."""
        cause = self.failures[-1]
        fix = "a model of another kind, or another attn_implementation in model_init_kwargs"
        if "train mode" in cause:
            fix = (
                "dropout and noise of 0 in the model's config.json, or no activation checkpointing"
            )
        raise PolicyError(
            f"{type(self.model).__name__} cannot be {what}: {cause}", why=why, fix=fix
        )

    def _packed(self, layout: str, first: int = 0) -> Packed:
        groups, traces, device = self.groups[first:], self.traces[first:], self.model.device
        return pack(groups, traces, self.template, device, layouts=(layout,))

    def _agrees(self, way: str, trial: Callable[[], tuple[Tensor, Tensor]]) -> bool:
        """Whether a trial gives the log-probabilities that it returns beside its own."""
        try:
            found, expected = trial()
            off = (found.double() - expected.double()).abs().mean().item()
            if off <= self.tolerance:  # not so where it is not a number
                return True
            reason = f"log-probabilities are {off:.2g} nats off those of plain forwards"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises is what the refusal says
            said = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {said[0]}"
        self.failures.append(f"{way}: {reason}")
        return False

    def _plain(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Fills in ``expected``, log π of each token of ``rows``, and the tolerance."""
        self.expected = self._alone()
        whole = torch.cat(self.expected)
        if dtype in TOLERANCE and not _may_round_products(self.model.device):
            self.tolerance = TOLERANCE[dtype]
            return whole, whole

        def nudge(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            signs = 1 - 2 * (torch.arange(out.shape[-1], device=out.device) % 2)
            return (out * (1 + signs * torch.finfo(torch.bfloat16).eps)).to(out.dtype)

        with self.model.get_input_embeddings().register_forward_hook(nudge):
            moved = (torch.cat(self._alone()) - whole).abs().mean().item()
        self.tolerance = max(COARSE, GROWTH * moved)
        return whole, whole

    def _alone(self) -> list[Tensor]:
        """log π of each token of ``rows`` from a forward of that row alone."""
        found, known = [], inspect.signature(type(self.model).forward).parameters
        for row, g in zip(self.rows, self.packed.batch.group_of_row.tolist(), strict=True):
            ids = torch.tensor([[*self.prompts[g], *row]], device=self.model.device)
            keep = {"logits_to_keep": len(row) + 1} if "logits_to_keep" in known else {}
            with in_mode(self.model, training=False), self.arithmetic():
                out = self.model(input_ids=ids, use_cache=False, **keep)
            logits = out.logits[0, -1 - len(row) : -1]
            found.append(self._chosen(logits, row))
        return found

    def _chosen(self, logits: Tensor, tokens: Sequence[int]) -> Tensor:
        """log π (n,) of one token for each row of the logits (n, V)."""
        logps = logits[:, : self.template.vocabulary].double().log_softmax(-1)
        return logps[range(len(tokens)), tokens]

    # -- scoring -----------------------------------------------------------------------------------

    def scores(self, layout: str, training: bool) -> bool:
        """Whether a layout is right; with ``training`` also in train mode, with gradients."""
        config = self.model.config.get_text_config()
        kernel = config._attn_implementation  # pyright: ignore[reportPrivateUsage]  (no public one)
        if layout == "packed" and kernel not in ("eager", "sdpa"):
            self.failures.append(f"layout packed: {kernel} takes no mask of four dimensions")
            return False

        def trial(mode: bool) -> tuple[Tensor, Tensor]:
            first = 1 if mode else 0  # gradients of the short prompt's rows alone: they need memory
            batch = self._packed(layout, first).batch
            with in_mode(self.model, training=mode), self.arithmetic():
                found = self.model(score=batch)[:, : batch.suffix.shape[1] - 1].detach()
            scored = batch.scored[:, :-1]
            expected = torch.zeros_like(scored, dtype=torch.double)
            for r, logps in enumerate(self.expected[-len(scored) :]):
                expected[r, : len(logps)] = logps
            return found[scored], expected[scored]

        right = self._agrees(f"layout {layout}", lambda: trial(False))
        if not (right and training):
            return right
        return self._agrees(f"layout {layout} in train mode", lambda: trial(True))

    # -- sampling ----------------------------------------------------------------------------------

    def samples(self, *, share: bool) -> bool:
        """Whether rows that are decoded one token at a time get their own logits."""
        name = f"sampling with a {'shared prompt' if share else 'repeated cache'}"
        if share and not direct_head(self.model):
            self.failures.append(f"{name}: its logits are not a product with the head's weights")
            return False

        def trial() -> tuple[Tensor, Tensor]:
            with in_mode(self.model, training=False), self.arithmetic():
                decoder = decoder_of(self.model, share)
                copies, one_row = len(self.rows) // len(self.prompts), [0] * len(self.prompts)
                decoder.start(self.prompts, copies, one_row)  # what they begin with, once
                return self._decoded(decoder), torch.cat(self.expected)

        return self._agrees(name, trial)

    def _decoded(self, decoder: Decoder) -> Tensor:
        """log π of the tokens of each row, which leaves the batch at its end."""
        found, rows = dict[tuple[int, int], Tensor](), self.rows
        active = list(range(len(rows)))
        for t in range(max(map(len, rows))):
            tokens = [rows[r][min(t, len(rows[r]) - 1)] for r in active]
            logps = self._chosen(decoder.logits, tokens)
            found |= {(r, t): logp for r, logp in zip(active, logps, strict=True)}
            alive = [i for i, r in enumerate(active) if t + 1 < len(rows[r])]
            if not alive:
                break
            kept = decoder.keep(alive)
            if kept is not None:
                active, tokens = [active[i] for i in kept], [tokens[i] for i in kept]
            decoder.advance(torch.tensor(tokens, device=decoder.logits.device))
        places = [(r, t) for r, row in enumerate(rows) for t in range(len(row))]
        return torch.stack([found[place] for place in places])


def _may_round_products(device: torch.device) -> bool:
    """Whether products of float32 may be computed in TF32."""
    if device.type == "cpu":
        return False
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # torch does not say once the newer setting was used, as by tf32=True
        return True


def trial_length(model: PreTrainedModel, longest: int | None = None) -> int:
    """Tokens of a trial prompt: more than a window or chunk of up to 2,048 tokens (4,096 on an
    accelerator) that rows of ``longest`` tokens can reach, because that is where things go wrong;
    where there is none it is short."""
    config, limit = model.config.get_text_config(), 2048 if model.device.type == "cpu" else 4096
    limit = min(limit, (context_of(model) or limit) - 32)  # the rest of a row follows
    limit = limit if longest is None else min(limit, longest)
    found = [getattr(config, name, None) for name in WINDOWS]
    return max([8, *(n for n in found if isinstance(n, int) and n <= limit)]) + 8


def _continuations(template: Template, length: int) -> tuple[list[PromptGroup], list[Traces]]:
    """A prompt of ``length`` tokens or more and a short one, which begin with the same tokens; each
    has an answer and two traces, with the empty one three rows, all of different lengths."""
    usable = [i for i in range(template.vocabulary) if i not in template.control_ids][:997]

    def some(count: int, first: int) -> tuple[int, ...]:
        return tuple(usable[(first + 7 * i + 3 * i * i) % len(usable)] for i in range(count))

    example, end = Example((("user", ""),), "", row_id=0, line=0), template.end_ids[0]
    start, rest = some(LEAST_SHARED, 9), max(length - LEAST_SHARED, 8)
    groups = [
        PromptGroup(example, (*start, *some(rest, 1)), (*some(5, 2), end)),
        PromptGroup(example, (*start, *some(5, 3)), (*some(3, 4), end)),
    ]
    traces = [
        Traces((some(9, 5), some(4, 6)), (False, False)),
        Traces((some(6, 7), some(2, 8)), (False, False)),
    ]
    return groups, traces
