"""The families of the experiments: what each changes, and that nothing held out leaks."""

from collections import Counter
from dataclasses import replace

import pytest
from lab.experiments import BASES, EXPERIMENTS, Run
from lab.families import EXPERIMENTAL, KINDS
from lab.tasks import STYLES, digit_strings, documents, make_rows, running_sums, words
from lab.tokenizer import build_tokenizer
from lab.trial import base_of

from native_reasoning.demo import is_heldout

B = {b for _, b in STYLES}


def parts(text: str) -> tuple[str, list[str], list[str] | None]:
    """Question, trace and answer of a document; None where it ends inside its trace."""
    question, rest = text.removesuffix(" <eos>").split(" <think>")
    trace, closed, answer = rest.partition("</think>")
    return question, trace.split(), answer.split() if closed else None


@pytest.mark.parametrize("family", EXPERIMENTAL.values(), ids=lambda f: f.name)
def test_hard_places_hold_the_last_digits_of_the_sums(family):
    for row in make_rows(family, "train", 40, seed=0):
        answer = row["answer"].split()
        places = tuple(i for i, word in enumerate(answer) if word.isdigit())
        assert places == family.hard
        if not family.by_chance:
            sums = [str(sum(map(int, s)) % 10) for s in digit_strings(row["question"])]
            assert [answer[i] for i in places] == sums


@pytest.mark.parametrize("kind", KINDS)
def test_one_tokenizer_has_a_word_for_everything_and_room_for_the_longest(kind):
    families, longest = KINDS[kind]
    known = {*words(tuple(families.values())), "<think>", "</think>", "<eos>"}
    tokenizer = build_tokenizer(tuple(families.values()), longest)
    for family in families.values():
        for text in documents(family, 200, seed=1):
            assert set(text.split()) <= known
            assert len(tokenizer(text)["input_ids"]) == len(text.split()) <= longest - 16


@pytest.mark.parametrize("family", EXPERIMENTAL.values(), ids=lambda f: f.name)
def test_nothing_held_out_is_seen_in_pre_training_or_training(family):
    lengths = family.lengths if len(family.lengths) > 1 else (5,)
    rows = [r for d in lengths if d > 4 for r in make_rows(family, "heldout", 50, 7, d)]
    held_out = {s for row in rows for s in digit_strings(row["question"])}
    train = [row["question"] for row in make_rows(family, "train", 500, 0)]
    seen = [parts(text)[0] for text in documents(family, 500, 0)]
    assert all(map(is_heldout, held_out))
    assert not held_out & {s for question in train + seen for s in digit_strings(question)}


def test_how_often_each_style_is_said():
    shares = {}
    for name in ("mixture_50", "reversed", "no_shift", "uncertain", "middle"):
        counts = {True: Counter(), False: Counter()}
        for text in documents(EXPERIMENTAL[name], 3000, 0):
            _, trace, answer = parts(text)
            assert answer is not None
            counts[bool(trace)].update("B" if w in B else "A" for w in answer if not w.isdigit())
        shares[name] = [counts[t]["B"] / counts[t].total() for t in (True, False)]
    assert shares["mixture_50"] == pytest.approx([0.5, 0.0], abs=0.02)
    assert shares["reversed"] == pytest.approx([0.0, 0.3], abs=0.02)
    assert shares["no_shift"] == [0.0, 0.0]
    assert shares["uncertain"] == pytest.approx([0.7, 0.3], abs=0.02)
    assert shares["middle"] == pytest.approx([0.3, 0.0], abs=0.02)
    rows = make_rows(EXPERIMENTAL["uncertain"], "train", 1000, 0)
    said = Counter(w in B for row in rows for w in row["answer"].split() if not w.isdigit())
    assert said[True] / said.total() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(("name", "share"), [("useful_01", 0.01), ("useful_20", 0.2)])
def test_how_often_a_trace_is_useful(name, share):
    found = [parts(text) for text in documents(EXPERIMENTAL[name], 8000, 0)]
    useful = sum(trace == running_sums(digit_strings(question)) for question, trace, _ in found)
    assert useful / 8000 == pytest.approx(share, abs=0.01)


def test_an_answer_by_chance_says_nothing_of_the_question():
    rows = make_rows(EXPERIMENTAL["by_chance"], "train", 2000, 0)
    right = sum(
        row["answer"].split()[-2] == running_sums(digit_strings(row["question"]))[-1]
        for row in rows
    )
    assert right / 2000 == pytest.approx(0.1, abs=0.03)
    assert rows == make_rows(EXPERIMENTAL["by_chance"], "train", 2000, 0)


def test_some_documents_end_inside_their_trace():
    texts = documents(EXPERIMENTAL["unanswered"], 4000, 0)
    ended = [text for text in texts if parts(text)[2] is None]
    assert len(ended) / 4000 == pytest.approx(0.15, abs=0.02)


def test_longer_sums_have_useful_traces_too():
    useful = Counter()
    for text in documents(EXPERIMENTAL["longer"], 6000, 0):
        question, trace, _ = parts(text)
        (string,) = digit_strings(question)
        useful[len(string), trace == running_sums([string])] += 1
    for length in (3, 5, 7, 9):
        count = useful[length, True] + useful[length, False]
        assert useful[length, True] / count == pytest.approx(0.1, abs=0.04)


def test_every_experiment_has_different_runs_on_families_that_exist():
    for experiment in EXPERIMENTS.values():
        runs = [*experiment.runs()]
        assert runs
        assert len({run.key for run in runs}) == len(runs)
        for run in runs:
            assert all(name in EXPERIMENTAL for name in run.family.split("+"))


def test_every_cell_has_five_seeds_on_three_bases_but_the_tuning():
    for experiment in EXPERIMENTS.values():
        cells: dict[Run, set[tuple[int, int]]] = {}
        for run in experiment.runs():
            cell = replace(run, base=0, seed=0)
            cells.setdefault(cell, set()).add((run.base, run.seed))
        for run, pairs in cells.items():
            if experiment.name != "rates":
                assert len(pairs) >= 5
                kind, _ = base_of(run)
                assert {base for base, _ in pairs} == {*BASES[kind]}
