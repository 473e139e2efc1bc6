"""Where thinking pays: by difficulty of the answer token, by the token itself, by its place; and
which words became more or less frequent in traces while the model was trained.

The words are compared as in Monroe, Colaresi & Quinn (2008), "Fightin' Words", equations 16 to 22:
the log-odds ratio of a word between two bodies of text under a Dirichlet prior, in standard errors
(z).
"""

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import regex

from native_reasoning.report.runs import Run
from native_reasoning.scoring.diagnostics import BINS

#: Tokens seen less often say little; the traces of one question are one sight of it.
SEEN = 5
TENTHS = 10
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


def by_difficulty(run: Run, tokens: pd.DataFrame) -> pd.DataFrame:
    """A row for each bin of ``BINS`` that has tokens: ``bin``, ``below`` (upper edge of
    e^b), ``share`` of the answer tokens, ``uplift`` (mean l − b) and ``gain`` (mean of the last
    three exchanges' l − lᵒ, another question's trace; nan where none was measured). Nats."""
    probability = np.exp(tokens["baseline_logp"].astype(float))
    bins: Any = pd.cut(probability, [0.0, *BINS.values()], right=False, labels=[*BINS])
    table = tokens.groupby(bins.rename("bin"), observed=True)["uplift"].agg(["size", "mean"])
    table = table.reset_index().astype({"bin": str})
    return pd.DataFrame(
        {
            "bin": table["bin"],
            "below": table["bin"].map(BINS),
            "share": table["size"] / max(len(tokens), 1),
            "uplift": table["mean"],
            "gain": [run.column(f"gain_{name}").iloc[-3:].mean() for name in table["bin"]],
        }
    )


def by_token(tokens: pd.DataFrame, most: int = 12) -> pd.DataFrame:
    """The ``most`` reference tokens that gained most and those that lost most, by mean l − b, of
    those seen ``SEEN`` times: ``token``, ``times`` (places in answers, however many traces),
    ``before`` and ``after`` (geometric means of the probability without and with a trace),
    ``uplift`` (nats)."""
    places = tokens.groupby(["step", "row_id", "place", "token"], sort=False)
    seen = places[["baseline_logp", "logp", "uplift"]].mean().reset_index("token")
    table = seen.groupby("token", sort=True).agg(
        times=("uplift", "size"),
        before=("baseline_logp", "mean"),
        after=("logp", "mean"),
        uplift=("uplift", "mean"),
    )
    table = table[table["times"] >= SEEN].reset_index()
    table[["before", "after"]] = np.exp(table[["before", "after"]].astype(float))
    return _both_ends(table, "uplift", most)


def _both_ends(table: pd.DataFrame, by: str, most: int) -> pd.DataFrame:
    """The ``most`` rows that gained most, then those that lost most."""
    table = table.sort_values(by, ascending=False, kind="stable")
    more, less = table[table[by] > 0].head(most), table[table[by] <= 0].tail(most)
    return pd.concat([more, less]).reset_index(drop=True)


def by_place(tokens: pd.DataFrame) -> pd.DataFrame:
    """Mean l − b of the answer's first tenth of tokens, its second, and so on: ``tenth`` (1..10)
    and ``uplift`` (nats)."""
    trace = (tokens["place"] == 0).cumsum()  # a row may come twice in a step
    share = tokens["place"] / tokens.groupby(trace)["place"].transform("size")
    tenth = (share * TENTHS).astype(int).clip(upper=TENTHS - 1) + 1
    found = tokens.groupby(tenth.rename("tenth"))["uplift"].mean()
    return found.reset_index()


# -- Words -----------------------------------------------------------------------------------------


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
    place = run.traces["step"].to_numpy()
    steps = np.unique(place)
    size = math.ceil(SHARE * len(steps))
    counted: list[Counter[str]] = []
    if 2 * size <= len(steps):  # else both ends would be the same steps
        for end in (steps[:size], steps[-size:]):
            texts = run.traces["trace"].filter(pa.array(np.isin(place, end))).to_pylist()
            counted.append(Counter(word for text in texts for word in words(text)))
    if not counted or not all(counted):
        return pd.DataFrame(columns=["word", "first", "last", "z"])
    before, after = counted
    counts = pd.DataFrame({"first": before, "last": after}, dtype=float).fillna(0.0).sort_index()
    z = log_odds(counts["last"].to_numpy(), counts["first"].to_numpy())
    table = (1000 * counts / counts.sum()).assign(z=z).rename_axis("word").reset_index()
    return _both_ends(table[table["z"].abs() > 2], "z", most)


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
