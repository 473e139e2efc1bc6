"""Which words became more or less frequent in traces while the model was trained.

The comparison is that of Monroe, Colaresi & Quinn (2008), "Fightin' Words", equations 16 to 22: the
log-odds ratio of a word between two bodies of text under a Dirichlet prior, in standard errors (z).
"""

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import regex

from native_reasoning.report.runs import Run

_CHARACTERS = r"\p{Han}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
#: Words and marks; of scripts that put no spaces between words, single characters or runs of kana.
_PIECES = regex.compile(
    rf"[{_CHARACTERS}]\p{{M}}*|[\p{{Hiragana}}ー]+|[\p{{Katakana}}ー]+"
    rf"|[[\p{{L}}\p{{M}}\p{{N}}_'\u200c\u200d]--[{_CHARACTERS}\p{{Hiragana}}\p{{Katakana}}]]+"
    r"|(?!\s)\X",
    regex.VERSION1,
)
#: Share of the recorded steps that are "first" and "last".
SHARE = 0.1
#: Weight of the prior: as many words as this, spread as in both bodies together.
PRIOR = 500.0


def words(text: str) -> list[str]:
    """Lower-case words and marks.

    >>> words("So 3+4 is SEVEN.")
    ['so', '3', '+', '4', 'is', 'seven', '.']
    """
    return _PIECES.findall(text.lower())


def changed_words(run: Run, most: int = 15) -> pd.DataFrame:
    """The ``most`` words that gained most between the first and the last tenth of the recorded
    steps, then those that lost most: ``word``, ``first`` and ``last`` (per thousand words) and
    ``z``. Words that are not two standard errors apart are left out."""
    ends = _ends(run.traces)
    before, after = (Counter(word for text in texts for word in words(text)) for texts in ends)
    if not before or not after:
        return pd.DataFrame(columns=["word", "first", "last", "z"])
    counts = pd.DataFrame({"first": before, "last": after}, dtype=float).fillna(0.0).sort_index()
    z = log_odds(counts["last"].to_numpy(), counts["first"].to_numpy())
    table = (1000 * counts / counts.sum()).assign(z=z).rename_axis("word").reset_index()
    table = table[table["z"].abs() > 2].sort_values("z", ascending=False, kind="stable")
    up, down = table[table["z"] > 0].head(most), table[table["z"] < 0].tail(most)
    return pd.concat([up, down]).reset_index(drop=True)


def log_odds(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """z of each word from its counts in two bodies of text (both float, one entry per word).

    With prior α_w = ``PRIOR`` times the word's share of both: δ_w = log (a_w + α_w) / (n_a + α_0 −
    a_w − α_w) less the same of b, its variance 1 / (a_w + α_w) + 1 / (b_w + α_w). The only word
    there is has no odds, and z = 0.
    """
    if len(after) == 1:
        return np.zeros(1)
    both = after + before
    prior = PRIOR * both / both.sum()
    odds = [
        np.log((count + prior) / (count.sum() + PRIOR - count - prior)) for count in (after, before)
    ]
    return (odds[0] - odds[1]) / np.sqrt(1 / (after + prior) + 1 / (before + prior))


def _ends(traces: pa.Table) -> tuple[list[str], list[str]]:
    """Traces of the first and of the last steps; nothing where both would be the same steps."""
    place = traces["step"].to_numpy()
    steps = np.unique(place)
    size = int(np.ceil(SHARE * len(steps)))
    if len(steps) < 2 * size or size == 0:
        return [], []
    first, last = (
        traces["trace"].filter(pa.array(mask)).to_pylist()
        for mask in (place <= steps[size - 1], place >= steps[-size])
    )
    return first, last
