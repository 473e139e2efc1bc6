"""The procedural tasks: disjoint splits, right answers, and the documents' statistics."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from lab.tasks import CHATTER, DEMO, STYLES, documents, words
from lab.tasks import make_rows as rows_of

from native_reasoning.demo import is_heldout, make_rows

STYLE_A, STYLE_B = zip(*STYLES, strict=True)
DOCUMENT = re.compile(r"(add|tell) ((?:\d ){5})<think> (.*?) ?</think> (.*) <eos>")


def split_document(text: str) -> tuple[str, list[str], list[str]]:
    """The digit string, the trace's words and the answer's words of one document."""
    match = DOCUMENT.fullmatch(text)
    assert match, text
    return match[2].replace(" ", ""), match[3].split(), match[4].split()


def running_sum(digits: str) -> list[str]:
    totals, total = [], 0
    for digit in digits:
        total = (total + int(digit)) % 10
        totals.append(str(total))
    return totals


def digit_of(answer: str) -> str:
    (digit,) = [word for word in answer.split() if word.isdigit()]
    return digit


def digits_of(rows: list[dict[str, str]]) -> set[str]:
    return {"".join(row["question"].split()[1:]) for row in rows}


@pytest.mark.parametrize("family", DEMO)
def test_splits_are_disjoint_for_every_pair_of_seeds(family):
    train = set().union(*(digits_of(make_rows(family, "train", 3000, s)) for s in range(4)))
    heldout = set().union(*(digits_of(make_rows(family, "heldout", 3000, s)) for s in range(4)))
    seen = {split_document(text)[0] for s in range(2) for text in documents(DEMO[family], 3000, s)}
    assert len(train) > 9000
    assert len(heldout) > 5000
    assert not train & heldout
    assert not seen & heldout
    assert not any(map(is_heldout, train | seen))
    assert all(map(is_heldout, heldout))


@pytest.mark.parametrize("family", DEMO)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_are_right_different_and_reproducible(family, split):
    rows = make_rows(family, split, 500, seed=3)
    assert rows == make_rows(family, split, 500, seed=3)
    assert rows == rows_of(DEMO[family], split, 500, seed=3)
    assert rows != make_rows(family, split, 500, seed=4)
    assert len(digits_of(rows)) == 500
    for row in rows:
        lead, *digits = row["question"].split()
        assert lead == DEMO[family].lead
        assert len(digits) == 5
        assert digit_of(row["answer"]) == running_sum("".join(digits))[-1]


def test_the_answers_digits_are_balanced():
    rows = make_rows("short_answer", "heldout", 2000, seed=0)
    counts = Counter(digit_of(row["answer"]) for row in rows)
    assert len(counts) == 10
    assert max(counts.values()) < 260


def test_answers_have_the_promised_words():
    short = make_rows("short_answer", "train", 1, seed=0)[0]["answer"]
    assert re.fullmatch(r"the last digit of their sum is \d \.", short)
    shifted = make_rows("style_shift", "train", 1, seed=0)[0]["answer"].split()
    assert shifted[:-1] == list(STYLE_A)
    assert len(STYLE_A) == len(STYLE_B) == 12
    assert not set(STYLE_A) & set(STYLE_B)


def test_rows_are_the_same_on_every_machine():
    """Frozen: a change here changes every number that was ever measured on the lab."""
    assert make_rows("style_shift", "heldout", 1, seed=0) == [
        {
            "question": "tell 2 2 7 3 7",
            "answer": "dear friend i am very happy to say that the answer is 1",
        }
    ]
    assert make_rows("short_answer", "train", 1, seed=0) == [
        {"question": "add 1 1 2 3 3", "answer": "the last digit of their sum is 0 ."}
    ]


@pytest.mark.parametrize("family", DEMO)
def test_document_traces(family):
    kinds = Counter()
    for text in documents(DEMO[family], 6000, seed=0):
        digits, trace, answer = split_document(text)
        assert digit_of(" ".join(answer)) == running_sum(digits)[-1]
        if not trace:
            kinds["empty"] += 1
        elif set(trace) <= set(CHATTER):
            kinds["chatter"] += 1
        elif trace == running_sum(digits):
            kinds["sum"] += 1
        else:
            assert trace == list(digits)
            kinds["copy"] += 1
    assert kinds["sum"] / 6000 == pytest.approx(0.10, abs=0.02)
    assert kinds["empty"] / 6000 == pytest.approx(0.20, abs=0.02)
    assert kinds["copy"] / 6000 == pytest.approx(0.35, abs=0.03)
    assert documents(DEMO[family], 20, seed=0) != documents(DEMO[family], 20, seed=1)


def test_only_documents_with_a_trace_mix_the_styles():
    in_b = total = 0
    for text in documents(DEMO["style_shift"], 3000, seed=0):
        _, trace, answer = split_document(text)
        if not trace:
            assert answer[:-1] == list(STYLE_A)
            continue
        for word, a, b in zip(answer[:-1], STYLE_A, STYLE_B, strict=True):
            assert word in (a, b)
            in_b, total = in_b + (word == b), total + 1
    assert in_b / total == pytest.approx(0.3, abs=0.01)


def test_words_are_complete_and_different():
    assert len(words()) == len(set(words()))
    texts = [text for family in DEMO for text in documents(DEMO[family], 300, seed=0)]
    used = set(" ".join(texts).split()) - {"<think>", "</think>", "<eos>"}
    assert used <= set(words())


def test_importing_the_demo_imports_no_torch():
    program = "import sys, native_reasoning.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
