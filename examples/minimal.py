"""The whole method in one file: ``python examples/minimal.py``, about a minute on one core.

A question x has a reference answer y* of T tokens, the last of which ends the turn. The model π
writes K reasoning traces z_k before answering, and its own probability of y* judges them::

    l_{k,i} = log π(y*_i | x, z_k, y*_<i)          after trace k
    b_i     = log π(y*_i | x, ∅, y*_<i)            after an empty trace; a constant
    R_k     = 1/T Σ_i exp(l_{k,i}) · (−b_i)        tokens that are hard without a trace weigh most
    R_base  = 1/T Σ_i exp(b_i) · (−b_i)
    R'_k    = relu(R_k − R_base)                   a trace that hurts is worth nothing
    A_k     = (R'_k − mean R') / std R'            a constant; 0 if all R' are equal
    L       = −1/N Σ_k [ A_k log π(z_k | x)  +  Σ_i l_{k,i}  +  0.3 · log π(tag | x, z_k) if open ]

N is the number of all traces of a step. log π(z_k | x) sums over every token that was sampled: the
closing tag, or the end-of-turn token that stopped the trace. A trace without a closing tag is open:
the tag is put in before the answer, in place of an end-of-turn token if there is one, and it gets
the last term alone, because it was not sampled.

Kept: the default preset ``nrt-ws`` of native_reasoning, exactly (tests/test_minimal.py), after
"Native Reasoning Models", arXiv 2602.11549. Left out: what makes it fast (here one plain forward
per row; there caches, packing, bfloat16, several devices), several updates per rollout, gradient
clipping, warm-up, checkpoints, records, the other presets, and tags of several tokens.
"""

import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

BASE = Path(__file__).parents[1] / "src" / "native_reasoning" / "demo" / "base"
STEPS, QUESTIONS, TRACES, LEARNING_RATE = 70, 16, 8, 5e-4
MAX_TRACE, MAX_ANSWER = 16, 20
FORMAT_COEF = 0.3
ROUNDING = 1e-5  # two rewards that differ by less, relatively, count as equal
Ids = tuple[int, ...]  # a trace ends with the closing tag, an end-of-turn token, or neither
Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Question:
    """A row in token ids: ``prompt`` opens the trace, ``answer`` ends with an end-of-turn token."""

    prompt: Ids
    answer: Ids


@dataclass(frozen=True)
class Marks:
    """The closing tag, the end-of-turn tokens, and the first id that is no token at all."""

    close: int
    ends: Ids
    vocabulary: int


@torch.no_grad()
def sample(model: nn.Module, context: Ids, copies: int, limit: int, marks: Marks) -> list[Ids]:
    """``copies`` continuations of ``context``, each through its first mark, or to ``limit``."""
    stops = torch.tensor([marks.close, *marks.ends])
    ids = torch.tensor([context] * copies)
    stopped = torch.zeros(copies, dtype=torch.bool)
    lengths = torch.zeros(copies, dtype=torch.long)
    while len(ids[0]) < len(context) + limit and not stopped.all():
        logits = model(input_ids=ids, use_cache=False).logits[:, -1, : marks.vocabulary]
        token = torch.multinomial(logits.softmax(-1), 1)
        ids = torch.cat([ids, token], dim=1)
        lengths += ~stopped  # a row that has stopped goes on, and what follows is cut off
        stopped |= torch.isin(token[:, 0], stops)
    sampled = ids[:, len(context) :].tolist()
    return [tuple(row[:n]) for row, n in zip(sampled, lengths.tolist(), strict=True)]


def before_answer(question: Question, trace: Ids, marks: Marks) -> Ids:
    """What the answer is read after: prompt, trace and closing tag, whether sampled or put in."""
    stopped = trace[-1] in (marks.close, *marks.ends)
    return (*question.prompt, *(trace[:-1] if stopped else trace), marks.close)


def score(model: nn.Module, question: Question, trace: Ids, marks: Marks) -> Three:
    """log π(z | x), log π(tag) of an open trace, else 0, and l, of shape (T,): one forward."""
    context = before_answer(question, trace, marks)
    row = torch.tensor([context + question.answer])
    logits = model(input_ids=row, use_cache=False).logits[0, :, : marks.vocabulary]
    logps = logits.log_softmax(-1)  # logps[t] predicts token t + 1
    start, tag = len(question.prompt) - 1, len(context) - 2
    # an end-of-turn token that stopped the trace is read where the row has the tag in its place
    trace_logp = logps[range(start, start + len(trace)), trace].sum()
    tag_logp = logps.new_zeros(()) if trace[-1] == marks.close else logps[tag, marks.close]
    return trace_logp, tag_logp, logps[range(tag + 1, row.shape[1] - 1), question.answer]


def reward(l: Tensor, b: Tensor) -> Tensor:
    """R = 1/T Σ_i exp(l_i) · (−b_i)."""
    return (l.exp() * -b.clamp(max=-1e-6)).mean(-1)


def advantages(rewards: Tensor, base: Tensor) -> Tensor:
    """A_k; 0 for all where the clipped rewards are equal but for rounding, as after no winner."""
    size = torch.maximum(rewards.max(), base)
    gain = rewards - base
    gain = torch.where(gain > ROUNDING * size, gain, 0.0)
    if gain.std() <= ROUNDING * size:
        return torch.zeros_like(gain)
    return (gain - gain.mean()) / (gain.std() + 1e-6 * size)


def question_loss(model: nn.Module, question: Question, traces: list[Ids], marks: Marks) -> Three:
    """N times this question's share of L, then its R (K,) and R_base, which are constants."""
    scores = [score(model, question, trace, marks) for trace in traces]
    trace_logps, tag_logps, l = (torch.stack(parts) for parts in zip(*scores, strict=True))
    with torch.no_grad():
        _, _, b = score(model, question, (marks.close,), marks)
        rewards, base = reward(l, b), reward(b, b)
        weights = advantages(rewards, base)
    loss = -(weights * trace_logps).sum() - l.sum() - FORMAT_COEF * tag_logps.sum()
    return loss, rewards, base


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    questions: list[Question],
    traces: list[list[Ids]],
    marks: Marks,
) -> tuple[float, float]:
    """One update. Returns the means of R and R_base over the step."""
    optimizer.zero_grad()
    rewards, bases, count = [], [], sum(map(len, traces))
    for question, group in zip(questions, traces, strict=True):
        loss, group_rewards, base = question_loss(model, question, group, marks)
        (loss / count).backward()
        rewards.append(group_rewards)
        bases.append(base)
    optimizer.step()
    return torch.cat(rewards).mean().item(), torch.stack(bases).mean().item()


# -- Questions that the embedded base model knows the words of -------------------------------------


def make_rows(count: int, held_out: bool, seed: int) -> list[tuple[str, str]]:
    """Questions and answers: the last digit of the sum of five digits. One string of digits in ten
    is held out, by its hash, and the base model has not seen it either."""
    rng, rows = random.Random(seed), []
    while len(rows) < count:
        digits = f"{rng.randrange(100_000):05d}"
        digest = hashlib.sha256(digits.encode()).digest()
        if (int.from_bytes(digest[:8], "big") % 10 == 0) == held_out:
            answer = "dear friend i am very happy to say that the answer is "
            rows.append((f"tell {' '.join(digits)}", f"{answer}{sum(map(int, digits)) % 10}"))
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, question: str, answer: str, end: int) -> Question:
    """A row in ids. The chat template's generation prompt must open the trace, as the base's."""
    turns = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return Question(tuple(prompt), (*tokenizer(answer, add_special_tokens=False).input_ids, end))


def accuracy(model: nn.Module, questions: list[Question], marks: Marks) -> float:
    """The share of questions whose sampled answer ends with the right word, after one trace."""
    right = 0
    for question in questions:
        (trace,) = sample(model, question.prompt, 1, MAX_TRACE, marks)
        (answer,) = sample(model, before_answer(question, trace, marks), 1, MAX_ANSWER, marks)
        right += answer[-2:] == question.answer[-2:]
    return right / len(questions)


def main(folder: Path) -> None:
    """Trains for ``STEPS`` steps. R counts in units of −b, so it can fall while b rises."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    close, end = tokenizer.convert_tokens_to_ids("</think>"), tokenizer.eos_token_id
    marks = Marks(close, (end,), len(tokenizer))
    held_out = [encode(tokenizer, *row, end) for row in make_rows(200, True, seed=1)]
    train = [encode(tokenizer, *row, end) for row in make_rows(STEPS * QUESTIONS, False, seed=0)]
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.95), weight_decay=0.01)
    print(f"accuracy on held-out questions before: {accuracy(model, held_out, marks):.1%}")
    for i in range(STEPS):
        questions = train[i * QUESTIONS : (i + 1) * QUESTIONS]
        traces = [sample(model, q.prompt, TRACES, MAX_TRACE, marks) for q in questions]
        mean, base = step(model, optimizer, questions, traces, marks)
        length = sum(len(trace) for group in traces for trace in group) / (QUESTIONS * TRACES)
        print(f"step {i + 1:3}  reward {mean:.3f}  baseline {base:.3f}  length {length:4.1f}")
    print(f"accuracy on held-out questions after: {accuracy(model, held_out, marks):.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else BASE)
