"""Where thinking pays: by difficulty of the answer token, by the token itself, by its place."""

from typing import Any

import numpy as np
import pandas as pd

from native_reasoning.report.runs import Run
from native_reasoning.scoring.diagnostics import BINS

#: Tokens seen less often say little; the traces of one question are one sight of it.
SEEN = 5
TENTHS = 10


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
    table = table.sort_values("uplift", ascending=False, kind="stable")
    gained, lost = table[table["uplift"] > 0].head(most), table[table["uplift"] <= 0].tail(most)
    return pd.concat([gained, lost]).reset_index(drop=True)


def by_place(tokens: pd.DataFrame) -> pd.DataFrame:
    """Mean l − b of the answer's first tenth of tokens, its second, and so on: ``tenth`` (1..10)
    and ``uplift`` (nats)."""
    trace = (tokens["place"] == 0).cumsum()  # a row may come twice in a step
    share = tokens["place"] / tokens.groupby(trace)["place"].transform("size")
    tenth = (share * TENTHS).astype(int).clip(upper=TENTHS - 1) + 1
    found = tokens.groupby(tenth.rename("tenth"))["uplift"].mean()
    return found.reset_index()
