"""The middle tier (benchmarks/middle): tasks, tokenizer, a little pre-training, a little run."""

import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import pytest

MIDDLE = Path(__file__).parents[2] / "benchmarks" / "middle"
sys.path.insert(0, str(MIDDLE))

from families import FAMILIES, Problem, make, village, walks  # noqa: E402
from pretrain import STAGES, Recipe, Shape, encoded, pretrain  # noqa: E402
from probe import probe  # noqa: E402
from run import Run, save, table  # noqa: E402
from tasks import (  # noqa: E402
    EASY,
    FIRST,
    HARD,
    SECOND,
    THIRD,
    begun,
    documents,
    problems,
    rows,
    split_of,
    trace_kind,
)
from vocabulary import build_tokenizer  # noqa: E402

CALENDARS = (
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    [
        *("January", "February", "March", "April", "May", "June", "July"),
        *("August", "September", "October", "November", "December"),
    ],
)
LOSING = {"drops", "gives", "lends", "loses", "sells"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(size=700, count=3000)


def some(family: str, split: str = "train", count: int = 60) -> list[Problem]:
    return problems([family], HARD, split, count, seed=5)


# -- Answers, by solvers that read the question's text ---------------------------------------------


def deeds(text: str) -> int:
    return sum(
        -int(number) if verb in LOSING else int(number)
        for verb, number in re.findall(r"(\w+) (\d+)", text)
    )


def solve_sums(question: str) -> str:
    noun = re.match(r"\w+ has \d+ (\w+)", question)[1]
    return f"{deeds(question)} {noun}"


def solve_dates(question: str) -> str:
    names = next(c for c in CALENDARS if any(name in question for name in c))
    start = next(i for i, name in enumerate(names) if re.search(rf"\b{name}\b", question))
    signs = {"later": 1, "earlier": -1}
    moved = sum(int(n) * signs[way] for n, way in re.findall(r"(\d+) (later|earlier)", question))
    return names[(start + moved) % len(names)]


@cache
def facts() -> dict[tuple[str, str], str]:
    """Person and relation → person, as the single steps' questions and answers have them."""
    single = problems(["kinship"], [1], "train", 260, seed=9)
    asked = (re.fullmatch(r"Who is (\w+)'s (\w+)\?", p.question) for p in single)
    return {(m[1], m[2]): p.answer for m, p in zip(asked, single, strict=True) if m}


def solve_kinship(question: str) -> str:
    person, *path = question.removeprefix("Who is ").rstrip("?").split("'s ")
    for relation in path:
        person = facts()[person, relation]
    return person


def solve_comparison(question: str) -> str:
    totals = {part.split()[0]: deeds(part) for part in question.split(". ")[:2]}
    more, less = sorted(totals, key=totals.__getitem__, reverse=True)
    return f"{more} by {totals[more] - totals[less]}"


def solve_ordering(question: str) -> str:
    start, *moves = question.removeprefix("A line is ").removesuffix(". What line?").split(", ")
    line = start.split()
    for move in moves:
        if move == "first goes last":
            line.append(line.pop(0))
        elif move == "last goes first":
            line.insert(0, line.pop())
        elif move == "ends swap":
            line[0], line[-1] = line[-1], line[0]
        elif move == "middle swaps":
            line[1], line[2] = line[2], line[1]
        else:
            line.reverse()
    return " ".join(line)


SOLVERS = {
    "sums": solve_sums,
    "dates": solve_dates,
    "kinship": solve_kinship,
    "comparison": solve_comparison,
    "ordering": solve_ordering,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_true_and_worked_traces_end_in_them(family):
    for problem in some(family):
        assert problem.answer == SOLVERS[family](problem.question)
        said = problem.answer.split()[0] if family == "sums" else problem.answer
        assert problem.worked.endswith(f" {said}.")
        results = len(re.findall(r" so | is ", problem.worked))
        assert results == problem.steps + (family == "comparison")
        assert not re.search(r" so | is ", problem.copied)
        assert trace_kind(problem, f"hmm. {problem.worked}") == "right"
        assert trace_kind(problem, problem.copied) == "copied"


def test_the_village_is_a_village():
    for person, kin in village().items():
        for relation, other in kin.items():
            assert person in village()[other].values(), (person, relation)
        if "mother" in kin:
            assert village()[kin["mother"]]["husband"] == kin["father"]
    assert sum(map(len, village().values())) == len(walks(1)) == 260


# -- Splits and documents --------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_splits_are_disjoint_and_rows_repeat(family):
    keys = {s: {p.key for p in some(family, s)} for s in ("train", "tune", "heldout")}
    assert not keys["train"] & keys["heldout"]
    assert not keys["train"] & keys["tune"]
    assert not keys["tune"] & keys["heldout"]
    assert rows(some(family)) == rows(some(family))
    assert rows(some(family)) != rows(problems([family], HARD, "train", 60, seed=6))


def test_no_family_can_be_guessed():
    for family in FAMILIES:
        answers = [p.answer.split()[0] for p in some(family, count=300)]
        assert max(map(answers.count, answers)) <= 0.15 * len(answers)


@pytest.mark.parametrize("mixture", [FIRST, SECOND, THIRD])
def test_documents_are_true_and_of_the_training_split(mixture, monkeypatch):
    seen: list[Problem] = []

    def spied(family: str, steps: int, rng: Random) -> Problem:
        seen.append(make(family, steps, rng))
        return seen[-1]

    monkeypatch.setattr("tasks.make", spied)
    found = documents(1000, 3, mixture)
    kept = [p for p in seen if split_of(p) == "train"]
    assert len(found) == len(kept) == 1000
    for document, problem in zip(found, kept, strict=True):
        assert document.question.startswith(problem.question)
        assert document.answer == problem.answer == SOLVERS[problem.family](problem.question)
        assert (document.kind == "worked") == (trace_kind(problem, document.trace) == "right")
        assert mixture is THIRD or document.kind != "worked" or problem.steps in EASY
    hard = [p.steps in HARD for p in kept]
    assert sum(hard) / 1000 == pytest.approx(mixture.hard_share, abs=0.06)
    easy = [d.kind for d, h in zip(found, hard, strict=True) if not h]
    shares = [easy.count(kind) / len(easy) for kind, _ in mixture.kinds]
    assert shares == pytest.approx([share for _, share in mixture.kinds], abs=0.08)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_begun_trace_stops_before_the_last_step(family):
    for problem in some(family, count=20):
        for text in begun(problem):
            results = len(re.findall(r" so | is ", text))
            assert 0 < results < problem.steps
            assert len(text) < len(problem.worked)
            kind = trace_kind(problem, f"maybe. {text}")
            assert kind == "begun"


# -- Tokenizer, pre-training, a run ----------------------------------------------------------------


def test_tokenizer_round_trip_and_single_tags(tokenizer):
    for document in documents(200, 1):
        ids = tokenizer(document.text)["input_ids"]
        parts = (document.question, "<think>", document.trace, "</think>", document.answer)
        apart = [i for part in parts for i in tokenizer(part)["input_ids"]]
        assert ids == [*apart, tokenizer.eos_token_id]
        for part in parts:
            assert tokenizer.decode(tokenizer(part)["input_ids"]).strip() == part
    assert [len(tokenizer(tag)["input_ids"]) for tag in ("<think>", "</think>")] == [1, 1]
    assert len(tokenizer(" 17")["input_ids"]) == 2


def test_the_loss_is_on_trace_and_answer_alone(tokenizer):
    batch = documents(8, 2)
    for part in encoded(tokenizer, batch, Recipe()):
        for ids, labels in zip(part["input_ids"], part["labels"], strict=True):
            text = tokenizer.decode(ids[labels != -100])
            assert "?" not in text
            assert "</think>" in text
            assert text.endswith("<eos>")


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    out = tmp_path_factory.mktemp("middle")
    stages = tuple(replace(stage, steps=1, schedule_steps=20) for stage in STAGES)
    recipe = Recipe(stages, batch_size=10, shape=Shape(layers=1, width=48, mlp=48, heads=1))
    losses = pretrain(out, 0, recipe, tokenizer)
    assert losses[2:] == pretrain(out, 0, recipe, tokenizer, done=2)
    return out


def test_a_run_writes_its_file_once(base, tmp_path):
    run = Run("nrt-ws", steps=2, per_family=2)
    save(run, base, tmp_path / "runs")
    path = tmp_path / "runs" / "nrt-ws-mixed-0-2.json"
    written = path.read_bytes()
    found = json.loads(written)
    assert set(found["families"]) == set(FAMILIES)
    assert len(found["curve"]["reward"]) == 1
    path.write_bytes(written[:-1])
    save(run, base, tmp_path / "runs")
    assert path.read_bytes() == written[:-1]
    path.write_text(json.dumps({**found, "pretraining": {}}))
    with pytest.raises(SystemExit, match="another base"):
        save(run, base, tmp_path / "runs")


def test_the_probe_gives_shares(base):
    shares = probe(base, "dates", 2)
    assert set(shares) == {"result", "walk", "worked", "none"}
    assert all(0 <= share <= 1 for share in shares.values())
    assert shares["worked"] == shares["none"] == 0  # three steps have taught it nothing


def test_the_table_has_every_method_once_per_seed():
    names = [run.name for run in table()]
    assert len(names) == len(set(names))
    assert names[:3] == ["base-mixed-0", "sft-mixed-0", "nrt-ws-mixed-0"]
