"""The families of the lab's experiments: the demo's two, and what is changed in them one by one.

A base model of the lab knows all families of one kind (``KINDS``), told apart by the lead word of
the question, so that one pre-training serves every comparison and the arithmetic behind the hard
digit is the same in all of them.
"""

from dataclasses import replace

from lab.tasks import DEMO, LONGEST, STYLES, Family

_SHORT, _STYLE = DEMO["short_answer"], DEMO["style_shift"]


def _style(name: str, **changes: object) -> Family:
    return replace(_STYLE, name=name, lead=name, **changes)


_ONE_SUM = (
    _SHORT,
    _STYLE,
    # how much of style B follows a trace
    *(_style(f"mixture_{share:02}", b_thinking=share / 100) for share in (5, 10, 20, 50)),
    # how often a trace of pre-training is useful
    *(_style(f"useful_{share:02}", useful=share / 100) for share in (1, 3, 20)),
    # controls: a trace brings the reference's style; none does; the digit in the middle; easy words
    # that are far from certain either way
    _style("reversed", b_plain=0.3, b_thinking=0.0),
    _style("no_shift", b_thinking=0.0),
    _style("middle", before=STYLES[:6], after=STYLES[6:]),
    _style("uncertain", b_reference=0.3, b_plain=0.3, b_thinking=0.7),
    # traces that end the text
    _style("unanswered", unanswered=0.15),
    # a digit that nothing in the question says
    replace(_SHORT, name="by_chance", lead="by_chance", by_chance=True),
    # sums of other lengths than are trained on
    replace(_SHORT, name="longer", lead="longer", lengths=(3, 4, 5, 6, 7, 8, 9)),
)

#: 36 easy words before each of three digits: answers of 111 words.
_LONG = replace(_STYLE, before=STYLES * 3, sums=3, useful=0.2)
_THREE_SUMS = (
    replace(_LONG, name="long", lead="long", b_thinking=0.1),
    replace(_LONG, name="long_no_shift", lead="long_no_shift", b_thinking=0.0),
)

#: What one base model knows: families by name, and how many tokens it has positions for. The
#: embedded model is of the kind ``demo``.
KINDS: dict[str, tuple[dict[str, Family], int]] = {
    "demo": (DEMO, LONGEST),
    "one_sum": ({family.name: family for family in _ONE_SUM}, LONGEST),
    "three_sums": ({family.name: family for family in _THREE_SUMS}, 2 * LONGEST),
}
EXPERIMENTAL = {name: family for families, _ in KINDS.values() for name, family in families.items()}


def kind_of(families: str) -> str:
    """The first kind of base model that knows the family, or all of several: ``a+b``.

    >>> kind_of("style_shift"), kind_of("short_answer+by_chance")
    ('demo', 'one_sum')
    """
    wanted = set(families.split("+"))
    return next(kind for kind, (known, _) in KINDS.items() if wanted <= known.keys())
