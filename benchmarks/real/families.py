"""Questions for a base model, with worked examples in the prompt: ``python families.py FOLDER``.

Writes ``boxes`` and ``three``, each as ``NAME.train.jsonl`` and ``NAME.test.jsonl`` of question and
answer, and ``NAME.jinja``, a chat template: the model's first token, four worked examples, then the
question. An answer ends as it does in the examples, with an empty line: a base model knows no other
end of turn. A problem is its three numbers: those of a held-out question are in no training
question, and those of an example in neither.
"""

import json
import random
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

NAMES = [
    "Adam",
    "Ruth",
    "Vera",
    "Kurt",
    "Joan",
    "Eric",
    "Carl",
    "Dan",
    "Eve",
    "Ralf",
    "Nina",
    "Omar",
    "Paul",
    "Rosa",
    "Tim",
    "Uma",
]
THINGS = ["pens", "books", "apples", "coins", "cards", "shells", "stamps", "beads"]
TURNS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Question: {{ m['content'] }}\nThink:"
    "{% else %}{{ m['content'] }}\n\n{% endif %}{% endfor %}"
)
EXAMPLES, HELD_OUT = 4, 100

Numbers = tuple[int, int, int]
#: Of a problem: question, worked trace, answer.
Problem = tuple[str, str, str]


def boxes(numbers: Numbers, draw: random.Random) -> Problem:
    """N has a boxes with b things each and c more."""
    a, b, c = numbers
    name, things = draw.choice(NAMES), draw.choice(THINGS)
    question = f"{name} has {a} boxes with {b} {things} each and {c} more. How many {things}?"
    return question, f"{a} * {b} = {a * b}, {a * b} + {c} = {a * b + c}.", str(a * b + c)


def three(numbers: Numbers, draw: random.Random) -> Problem:
    """The sum of three numbers of one digit."""
    a, b, c = numbers
    trace = f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}."
    return f"What is {a} + {b} + {c}?", trace, str(a + b + c)


FAMILIES: dict[str, tuple[Callable[[Numbers, random.Random], Problem], range]] = {
    "boxes": (boxes, range(2, 10)),
    "three": (three, range(1, 10)),
}


def make(name: str, seed: int = 0) -> tuple[str, dict[str, list[dict[str, str]]]]:
    """The chat template of a family, and its rows by split in random order."""
    problem, digits = FAMILIES[name]
    draw = random.Random(seed)
    numbers: list[Numbers] = [(a, b, c) for a, b, c in product(digits, digits, digits)]
    draw.shuffle(numbers)
    worked = [problem(numbers.pop(), draw) for _ in range(EXAMPLES)]
    shown = "".join(f"Question: {q}\nThink: {t}\nAnswer: {a}\n\n" for q, t, a in worked)
    asked = [problem(each, draw) for each in numbers]
    rows = [{"question": question, "answer": answer} for question, _, answer in asked]
    return "{{ bos_token }}" + shown + TURNS, {"test": rows[:HELD_OUT], "train": rows[HELD_OUT:]}


def main(folder: Path) -> None:
    """Writes the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FAMILIES:
        template, splits = make(name)
        (folder / f"{name}.jinja").write_text(template, encoding="utf-8")
        for split, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.{split}.jsonl").write_text(text, encoding="utf-8")
            print(f"{name}.{split}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
