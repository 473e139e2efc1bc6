"""Splits, rows and pre-training documents of the middle tier; families.py makes the problems.

``python benchmarks/middle/tasks.py FOLDER`` writes the rows of ``nrt compare`` (mixed.yaml):
train.jsonl and test.jsonl, families in turn.

Every problem of two or more steps belongs to one split, by a hash of its form without the wording
(``Problem.key``): *train*, *tune* (learning rates and other choices) or *heldout* (the tables). No
choice of seeds can put a held-out problem into the training rows or into a document. Problems of
one step are the facts that every chain is made of (3 later than Monday, Ann's father); they are in
the training split.
"""

import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from families import FAMILIES, Problem, make

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.tasks import CLOSE, END, OPEN

EASY, HARD = (1, 2, 3), (4, 5)
"""Steps of the problems in the documents, and of the question-answer pairs."""

CHATTER = (
    *("let me see.", "hmm.", "okay so.", "this looks hard.", "well now.", "I think so."),
    *("wait a moment.", "that is a good question.", "maybe.", "let me think again."),
)
CLOSERS = ("Please tell me.", "Think well.", "Take your time.", "I want to know.")


@dataclass(frozen=True)
class Mixture:
    """What the documents are made of.

    ``kinds`` are shares of traces: *worked* steps with the state after each, *copied* ones without,
    *chatter*, or *empty*. ``steps`` are shares of difficulties. ``hard_share`` of the documents are
    on hard problems, whose traces are of ``hard_kinds``: *begun* ones are worked up to a random
    step, never the last, and copied from there. ``opening`` is the chance of one chatter sentence
    before a trace that is neither chatter nor empty, ``closing`` that of a polite sentence behind
    the question.
    """

    kinds: tuple[tuple[str, float], ...] = (
        ("worked", 0.45),
        ("copied", 0.15),
        ("chatter", 0.2),
        ("empty", 0.2),
    )
    steps: tuple[tuple[int, float], ...] = ((1, 0.3), (2, 0.35), (3, 0.35))
    hard_share: float = 0.0
    hard_kinds: tuple[tuple[str, float], ...] = (
        ("begun", 0.4),
        ("copied", 0.15),
        ("chatter", 0.25),
        ("empty", 0.2),
    )
    opening: float = 0.25
    closing: float = 0.25


FIRST = Mixture()
"""Easy problems alone. A model that saw no more than this leaves out steps of a hard problem, so
that no trace has more than three (README.md)."""
SECOND = replace(FIRST, hard_share=0.5)
"""Hard problems too, none of them worked to its end."""
THIRD = replace(
    SECOND,
    hard_share=0.6,
    hard_kinds=(
        ("worked", 0.1),
        ("begun", 0.35),
        ("copied", 0.2),
        ("chatter", 0.2),
        ("empty", 0.15),
    ),
)
"""One hard trace in ten is worked to its end."""


@dataclass(frozen=True)
class Document:
    """A pre-training document in four parts; ``text`` joins them."""

    question: str
    trace: str
    answer: str
    kind: str

    @property
    def text(self) -> str:
        """``question <think> trace </think> answer <eos>``."""
        return f"{self.question} {OPEN} {self.trace} {CLOSE} {self.answer} {END}"


def split_of(problem: Problem) -> str:
    """The split of a problem: a tenth is *heldout*, a tenth *tune*, by the SHA-256 of its key."""
    if problem.steps == 1:
        return "train"
    digest = hashlib.sha256(problem.key.encode()).digest()
    return {0: "heldout", 1: "tune"}.get(int.from_bytes(digest[:8], "big") % 10, "train")


def problems(
    families: Sequence[str], steps: Sequence[int], split: str, count: int, seed: int | str
) -> list[Problem]:
    """``count`` problems with different questions, families and steps in turn.

    The same arguments give the same problems on every machine.
    """
    rng = random.Random(f"problems/{split}/{seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        at = len(found)
        family = families[at % len(families)]
        problem = make(family, steps[at // len(families) % len(steps)], rng)
        if split_of(problem) == split:
            found.setdefault(problem.question, problem)
    return list(found.values())


def rows(chosen: Sequence[Problem]) -> list[dict[str, str]]:
    """Question-answer pairs as the package reads them."""
    return [{"question": p.question, "answer": p.answer} for p in chosen]


def documents(count: int, seed: int | str, mixture: Mixture = FIRST) -> list[Document]:
    """``count`` documents on problems of the training split, families in turn.

    Every answer is the true one. After a worked trace it can be read off; after any other the model
    must do the remaining steps by itself.
    """
    rng = random.Random(f"documents/{seed}")
    names, found = tuple(FAMILIES), []
    while len(found) < count:
        hard = mixture.hard_share > 0 and rng.random() < mixture.hard_share
        steps = rng.choice(HARD) if hard else _draw(mixture.steps, rng)
        problem = make(names[len(found) % len(names)], steps, rng)
        if split_of(problem) == "train":
            kind = _draw(mixture.hard_kinds if hard else mixture.kinds, rng)
            document = Document(problem.question, trace(problem, kind, rng), problem.answer, kind)
            found.append(_varied(document, mixture, rng))
    return found


def _draw(shares: Sequence[tuple[Any, float]], rng: random.Random) -> Any:
    """One of the names, as likely as its share says."""
    names, weights = zip(*shares, strict=True)
    (name,) = rng.choices(names, weights)
    return name


def trace(problem: Problem, kind: str, rng: random.Random) -> str:
    """A trace of one kind for a problem; chatter has one to three sentences."""
    if kind == "worked":
        return problem.worked
    if kind == "begun":
        return rng.choice(begun(problem))
    if kind == "copied":
        return problem.copied
    return " ".join(rng.sample(CHATTER, rng.randint(1, 3))) if kind == "chatter" else ""


def begun(problem: Problem) -> list[str]:
    """The worked trace broken off after each of its steps but the last, the rest copied."""
    worked, copied = problem.worked.split(". "), problem.copied.split(". ")
    cuts = (". ".join([*worked[:at], *copied[at:]]) for at in range(2, len(copied)))
    return list(dict.fromkeys(cuts))


def _varied(document: Document, mixture: Mixture, rng: random.Random) -> Document:
    """The document with an opening or a closer now and then."""
    if rng.random() < mixture.closing:
        question = f"{document.question} {rng.choice(CLOSERS)}"
        document = replace(document, question=question)
    if document.kind not in ("chatter", "empty") and rng.random() < mixture.opening:
        document = replace(document, trace=f"{rng.choice(CHATTER)} {document.trace}")
    return document


def trace_kind(problem: Problem, text: str) -> str:
    """What a sampled trace is: *right* (ends with all worked steps), *begun*, *copied* (each as the
    documents have it), *worked* (it says states, but not these), *empty*, or *other*. White space
    does not count, and chatter may come before."""
    plain = _squeezed(text)
    if not plain:
        return "empty"
    if plain.endswith(_squeezed(problem.worked)):
        return "right"
    if any(plain.endswith(_squeezed(one)) for one in begun(problem)):
        return "begun"
    if plain.endswith(_squeezed(problem.copied)):
        return "copied"
    states = sum(text.split().count(word) for word in ("so", "is"))
    return "worked" if states > 1 else "other"


def _squeezed(text: str) -> str:
    return "".join(text.split())


def main(folder: Path) -> None:
    """1,000 training rows and 300 held-out ones, of hard problems of all families."""
    names = tuple(FAMILIES)
    for name, split, count in (("train", "train", 1000), ("test", "heldout", 300)):
        seed = 0 if split == "train" else "the held-out problems"
        lines = [json.dumps(row) + "\n" for row in rows(problems(names, HARD, split, count, seed))]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
