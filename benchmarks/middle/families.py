"""Five families of small problems in English. Each problem is a walk: a state and steps that change
it, told in the order in which they are to be done.

========== ============================== ============================= ==========================
family     state                          a step                        answer
========== ============================== ============================= ==========================
sums       a number, 1 to 19              ``finds 5``, ``loses 3``      ``12 apples``
dates      a weekday or a month           ``3 later``, ``2 earlier``    ``Thursday``
kinship    a person of a fixed village    ``father``, ``sister``        ``Tom``
comparison two numbers, 1 to 12           ``wins 3``, ``loses 2``       ``Ann by 2``
ordering   four names in a line           ``ends swap``                 ``Bob Ann Dan Cal``
========== ============================== ============================= ==========================

A *worked* trace says each step with the state after it (``finds 5 so 12.``), a *copied* one only
the steps (``finds 5.``). The number of steps is the difficulty. The village (60 people, 260 single
relations) is in no question: whoever answers must know it.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Problem:
    """A question with its answer, the two traces, and ``key``, its form without the wording.

    >>> from random import Random
    >>> make("dates", 2, Random(1))  # doctest: +SKIP
    Problem(family='dates', steps=2, question='A visit in May moves 2 later, 3 earlier. When?',
            answer='April', worked='May. 2 later so July. 3 earlier so April.',
            copied='May. 2 later. 3 earlier.', key='dates/month/5/+2/-3')
    """

    family: str
    steps: int
    question: str
    answer: str
    worked: str
    copied: str
    key: str


WOMEN = (
    *("Ann", "Amy", "Bea", "Cora", "Dora", "Ella", "Eve", "Fay", "Gail", "Hope"),
    *("Ida", "Iris", "Jane", "Joan", "Kate", "Lena", "Lily", "Mary", "Mona", "Nell"),
    *("Nora", "Olga", "Pam", "Rosa", "Ruth", "Sara", "Tess", "Uma", "Vera", "Zoe"),
)
MEN = (
    *("Adam", "Alan", "Ben", "Carl", "Dan", "Earl", "Eric", "Finn", "Fred", "Glen"),
    *("Hans", "Hugo", "Ivan", "Jack", "Jim", "Karl", "Kurt", "Leo", "Luke", "Mark"),
    *("Max", "Neil", "Otto", "Paul", "Ralf", "Sam", "Ted", "Tom", "Victor", "Walt"),
)
PLAYERS = (*WOMEN[::4], *MEN[::4])
"""The 16 names of the families other than kinship."""

NOUNS = ("apples", "books", "coins", "cards", "eggs", "nuts", "pens", "stones")
GAINS = ("buys", "finds", "gets", "makes", "wins")
LOSSES = ("drops", "gives", "lends", "loses", "sells")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
MOVES: dict[str, tuple[int, int, int, int]] = {
    "first goes last": (1, 2, 3, 0),
    "last goes first": (3, 0, 1, 2),
    "ends swap": (3, 1, 2, 0),
    "middle swaps": (0, 2, 1, 3),
    "all reverse": (3, 2, 1, 0),
}
"""What an ordering's step does: the place from which each of the four new places is filled."""

LARGEST_SUM, LARGEST_SCORE, LARGEST_CHANGE, FURTHEST = 19, 12, 6, 3


def make(family: str, steps: int, rng: random.Random) -> Problem:
    """One problem of a family with so many steps."""
    return FAMILIES[family](steps, rng)


def _sums(steps: int, rng: random.Random) -> Problem:
    name, noun, verbs = rng.choice(PLAYERS), rng.choice(NOUNS), _verbs(rng)
    start = rng.randint(1, 9)
    total, said, told, changes = _deeds(steps, start, LARGEST_SUM, verbs, rng)
    worked, key = [f"has {start}.", *told], ["sums", str(start), *changes]
    question = f"{name} has {start} {noun}, {', '.join(said)}. How many?"
    return _problem("sums", steps, question, f"{total} {noun}", worked, [worked[0], *said], key)


def _dates(steps: int, rng: random.Random) -> Problem:
    unit, names, lead = rng.choice((("day", DAYS, "on"), ("month", MONTHS, "in")))
    start = at = rng.randrange(len(names))
    said, worked, key = [], [f"{names[start]}."], ["dates", unit, str(start)]
    for move in _unlike_neighbours(steps, tuple(range(-FURTHEST, 0)) + _up_to(FURTHEST), rng):
        at = (at + move) % len(names)
        said.append(f"{abs(move)} {'later' if move > 0 else 'earlier'}")
        worked.append(f"{said[-1]} so {names[at]}.")
        key.append(f"{move:+}")
    question = f"A visit {lead} {names[start]} moves {', '.join(said)}. When?"
    return _problem("dates", steps, question, names[at], worked, [worked[0], *said], key)


def _kinship(steps: int, rng: random.Random) -> Problem:
    start, path = rng.choice(walks(steps))
    person, worked = start, [f"{start}."]
    for relation in path:
        person = village()[person][relation]
        worked.append(f"{relation} is {person}.")
    question = f"Who is {start}" + "".join(f"'s {relation}" for relation in path) + "?"
    key = ["kinship", start, *path]
    return _problem("kinship", steps, question, person, worked, [worked[0], *path], key)


def _comparison(steps: int, rng: random.Random) -> Problem:
    names = rng.sample(PLAYERS, 2)
    first = rng.randint(max(0, steps - 3), min(3, steps))
    totals, told, worked, copied, key = [], [], [], [], ["comparison"]
    for name, deeds in zip(names, (first, steps - first), strict=True):
        verbs, start = _verbs(rng), rng.randint(1, 9)
        total, said, states, changes = _deeds(deeds, start, LARGEST_SCORE, verbs, rng)
        worked += [f"{name} has {start}.", *states]
        key += ["/", str(start), *changes]
        copied += [f"{name} has {start}", *said]
        told.append(", ".join([f"{name} has {start}", *said]))
        totals.append(total)
    if totals[0] == totals[1]:
        return _comparison(steps, rng)
    more, less = (0, 1) if totals[0] > totals[1] else (1, 0)
    answer = f"{names[more]} by {totals[more] - totals[less]}"
    worked.append(f"{totals[more]} over {totals[less]} so {answer}.")
    question = f"{told[0]}. {told[1]}. Who has more?"
    return _problem("comparison", steps, question, answer, worked, copied, key)


def _ordering(steps: int, rng: random.Random) -> Problem:
    line = rng.sample(PLAYERS, 4)
    start, worked = " ".join(line), [f"{' '.join(line)}."]
    moves = _unlike_neighbours(steps, tuple(MOVES), rng)
    for move in moves:
        line = [line[place] for place in MOVES[move]]
        worked.append(f"{move} so {' '.join(line)}.")
    question = f"A line is {start}, {', '.join(moves)}. What line?"
    answer, key = " ".join(line), ["ordering", *moves]
    return _problem("ordering", steps, question, answer, worked, [worked[0], *moves], key)


FAMILIES: dict[str, Callable[[int, random.Random], Problem]] = {
    "sums": _sums,
    "dates": _dates,
    "kinship": _kinship,
    "comparison": _comparison,
    "ordering": _ordering,
}


def _problem(family: str, steps: int, question: str, answer: str, *lists: list[str]) -> Problem:
    worked, copied, key = lists
    copy = " ".join(f"{part.rstrip('.')}." for part in copied)
    return Problem(family, steps, question, answer, " ".join(worked), copy, "/".join(key))


def _up_to(largest: int) -> tuple[int, ...]:
    return tuple(range(1, largest + 1))


def _verbs(rng: random.Random) -> tuple[list[str], list[str]]:
    """Gains and losses in random order, to be used once each."""
    return rng.sample(GAINS, len(GAINS)), rng.sample(LOSSES, len(LOSSES))


def _deed(change: int, verbs: tuple[list[str], list[str]]) -> str:
    return f"{verbs[change < 0].pop()} {abs(change)}"


def _deeds(
    count: int, total: int, ceiling: int, verbs: tuple[list[str], list[str]], rng: random.Random
) -> tuple[int, list[str], list[str], list[str]]:
    """A walk of gains and losses from ``total``: where it ends, the deeds, the deeds with the state
    after each, and the changes."""
    said, states, changes = [], [], []
    for _ in range(count):
        change = _change(total, LARGEST_CHANGE, ceiling, rng)
        total += change
        said.append(_deed(change, verbs))
        states.append(f"{said[-1]} so {total}.")
        changes.append(f"{change:+}")
    return total, said, states, changes


def _change(total: int, largest: int, ceiling: int, rng: random.Random) -> int:
    """A gain or a loss, as likely where both are possible, that keeps 1 ≤ total ≤ ceiling."""
    gain, loss = min(largest, ceiling - total), min(largest, total - 1)
    if loss < 1 or (gain >= 1 and rng.random() < 0.5):
        return rng.randint(1, gain)
    return -rng.randint(1, loss)


def _unlike_neighbours(count: int, choices: tuple, rng: random.Random) -> list:
    """``count`` choices, none the same as the one before it."""
    found: list = []
    for _ in range(count):
        found.append(rng.choice([c for c in choices if not found or c != found[-1]]))
    return found


# -- The village -----------------------------------------------------------------------------------

COUPLES = 10
"""In each of three generations; every couple of the first two has a daughter and a son."""


@cache
def village() -> dict[str, dict[str, str]]:
    """Person → relation → person, always the same. A son of couple i marries the daughter of couple
    i + 1, in the next generation that of couple i + 3, and lives on as couple i."""
    rng = random.Random("village")
    women, men = rng.sample(WOMEN, len(WOMEN)), rng.sample(MEN, len(MEN))
    kin: dict[str, dict[str, str]] = {name: {} for name in (*women, *men)}
    wives, husbands = women[:COUPLES], men[:COUPLES]
    _marry(kin, wives, husbands)
    for born, shift in ((COUPLES, 1), (2 * COUPLES, 3)):
        daughters, sons = women[born : born + COUPLES], men[born : born + COUPLES]
        for wife, husband, daughter, son in zip(wives, husbands, daughters, sons, strict=True):
            for parent in (wife, husband):
                kin[parent] |= {"daughter": daughter, "son": son}
            for child in (daughter, son):
                kin[child] |= {"mother": wife, "father": husband}
            kin[daughter]["brother"], kin[son]["sister"] = son, daughter
        wives, husbands = daughters[shift:] + daughters[:shift], sons
        _marry(kin, wives, husbands)
    return kin


def _marry(kin: dict[str, dict[str, str]], wives: list[str], husbands: list[str]) -> None:
    for wife, husband in zip(wives, husbands, strict=True):
        kin[wife]["husband"], kin[husband]["wife"] = husband, wife


@cache
def walks(steps: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Every (start, relations) that no shorter walk replaces: the end is ``steps`` away."""
    found = []
    for start in village():
        far = _distances(start)
        paths: list[tuple[str, tuple[str, ...]]] = [(start, ())]
        for step in range(1, steps + 1):
            paths = [
                (other, (*path, relation))
                for person, path in paths
                for relation, other in village()[person].items()
                if far[other] == step
            ]
        found += [(start, path) for _, path in paths]
    return tuple(found)


def _distances(start: str) -> dict[str, int]:
    far, queue = {start: 0}, deque([start])
    while queue:
        person = queue.popleft()
        for other in village()[person].values():
            if other not in far:
                far[other] = far[person] + 1
                queue.append(other)
    return far
