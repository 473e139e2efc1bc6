"""The picture of how-it-works.md and of the README: ``python docs/make_picture.py``.

One question of the embedded model with three traces, put in by force, and none: the probability of
each reference token after each, and the rewards and advantages that ``nrt-ws`` makes of them. The
numbers are the model's own. A test compares the file with what this would write; look at it before
it is committed.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from native_reasoning.demo import base_path
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.types import Scores

FILE = Path(__file__).parent / "images" / "how-it-works.svg"
QUESTION = "tell 5 7 4 8 6"
ANSWER = "dear friend i am very happy to say that the answer is 0"
TRACES = ("5 2 6 4 0", "okay maybe wait okay", "")

LEFT, CELL, TOP, ROW = 196, 35, 150, 52
INK, SOFT, BETTER, WORSE = "#1d2733", "#5b6875", "#1f77b4", "#d1620a"


@dataclass(frozen=True)
class Told:
    """What the model says: ``words`` of the answer, their probabilities ``without`` a trace (T,)
    and ``after`` each trace (K, T), the ``rewards`` (K,), R_base and the ``advantages`` (K,)."""

    words: list[str]
    without: torch.Tensor
    after: torch.Tensor
    rewards: torch.Tensor
    base: float
    advantages: torch.Tensor


def ask() -> Told:
    """The embedded model's probabilities, and what the default objective makes of them."""
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    model = AutoModelForCausalLM.from_pretrained(base_path(), dtype="float32").eval()
    answer = tokenizer.encode(f"{ANSWER} <eos>", add_special_tokens=False)

    def logps(trace: str) -> torch.Tensor:
        """(T,) log π of the answer's tokens after the question and a trace."""
        before = tokenizer.encode(f"{QUESTION} <think> {trace} </think>", add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([before + answer])).logits[0, len(before) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]

    l, b = torch.stack([logps(trace) for trace in TRACES]), logps("")
    k = len(TRACES)
    scores = Scores(
        trace=torch.zeros(k, 1),
        trace_mask=torch.ones(k, 1, dtype=torch.bool),
        answer=l,
        baseline=b,
        forced_tag=torch.zeros(k),
        closed=torch.ones(k, dtype=torch.bool),
    )
    signal = preset_objective("nrt-ws")(scores)
    words = [*ANSWER.split(), "end"]
    base = float(signal.baseline_reward)
    return Told(words, b.exp(), l.exp(), signal.rewards, base, signal.advantages)


def text(x: float, y: float, what: str, size: int = 13, **more: str) -> str:
    """A piece of text; ``more`` are attributes."""
    given = {"fill": INK, **more}
    attributes = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in given.items())
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" {attributes}>{escape(what)}</text>'


def cells(y: float, values: torch.Tensor, without: torch.Tensor) -> list[str]:
    """A row of probabilities, blue where they are above those without a trace, orange below."""
    drawn = []
    for i, (value, plain) in enumerate(zip(values.tolist(), without.tolist(), strict=True)):
        x, gain = LEFT + i * CELL, value - plain
        colour = BETTER if gain > 0 else WORSE
        opacity = min(1.0, 1.2 * abs(gain)) if abs(gain) > 0.02 else 0.0
        drawn += [
            f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="30" rx="4" fill="#eef1f4"/>',
            f'<rect x="{x}" y="{y}" width="{CELL - 3}" height="30" rx="4" fill="{colour}" '
            f'fill-opacity="{opacity:.2f}"/>',
            text(
                x + (CELL - 3) / 2,
                y + 20,
                f"{value:.2f}".removeprefix("0") if value < 0.995 else "1",
                12,
                text_anchor="middle",
                fill="#ffffff" if opacity > 0.6 else INK,
            ),
        ]
    return drawn


def heads(told: Told) -> list[str]:
    """The question, the words of the reference answer, and the names of the columns."""
    right = LEFT + len(told.words) * CELL
    drawn = [
        text(20, 34, "question", 12, fill=SOFT),
        text(20, 54, QUESTION, 15, font_weight="600"),
        text(20, 112, "1  sampled traces", 13, font_weight="600"),
        text(
            LEFT, 34, "2  how probable is the reference answer after each?", 13, font_weight="600"
        ),
        text(right + 14, 34, "3  what is it worth?", 13, font_weight="600"),
    ]
    for i, word in enumerate(told.words):
        x = LEFT + i * CELL + (CELL - 3) / 2
        where = f"rotate(-48 {x:g} {TOP - 52})"
        drawn.append(text(x, TOP - 52, word, 13, transform=where, font_weight="600"))
    for i, name in enumerate(("R", "R − R_base", "A")):
        drawn.append(text(right + 34 + 78 * i, 112, name, 13, text_anchor="middle", fill=SOFT))
    return drawn


def lines(told: Told) -> list[str]:
    """A line for the empty trace as the baseline, and one for each trace."""
    right = LEFT + len(told.words) * CELL
    rows = [("no trace", told.without, told.base, None)]
    for trace, after, reward, advantage in zip(
        TRACES, told.after, told.rewards.tolist(), told.advantages.tolist(), strict=True
    ):
        rows.append((trace or "(empty)", after, reward, advantage))
    drawn = []
    for i, (name, values, reward, advantage) in enumerate(rows):
        y = TOP - 26 + ROW * i
        mono = {} if advantage is None else {"font_family": "ui-monospace, monospace"}
        drawn.append(text(20, y + 20, name, 13, fill=SOFT if advantage is None else INK, **mono))
        drawn += cells(y, values, told.without)
        drawn.append(text(right + 34, y + 20, f"{reward:.3f}", 13, text_anchor="middle"))
        if advantage is None:
            drawn.append(text(right + 112, y + 20, "R_base", 12, text_anchor="middle", fill=SOFT))
            continue
        gain = max(0.0, reward - told.base)
        drawn.append(text(right + 112, y + 20, f"{gain:.3f}", 13, text_anchor="middle"))
        colour = BETTER if advantage > 0 else WORSE
        drawn.append(
            text(
                right + 190,
                y + 20,
                f"{advantage:+.2f}".replace("-", "−"),
                15,
                text_anchor="middle",
                fill=colour,
                font_weight="700",
            )
        )
    return drawn


def picture(told: Told) -> str:
    """The whole SVG."""
    width, height = LEFT + len(told.words) * CELL + 236, TOP + 4 * ROW + 54
    foot = TOP + 4 * ROW
    drawn = [
        *heads(told),
        *lines(told),
        text(20, foot + 2, "4  one backward pass", 13, font_weight="600"),
        text(LEFT, foot + 2, "traces with A > 0 become likelier, those with A < 0 less likely;"),
        text(LEFT, foot + 24, "the reference answer becomes likelier after each of them"),
    ]
    body = "\n".join(drawn)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img">'
        "<title>One question, three traces, and what each does to the reference answer</title>\n"
        f'<rect width="{width}" height="{height}" rx="10" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    FILE.write_text(picture(ask()), encoding="utf-8")
