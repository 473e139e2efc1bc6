"""Head-room before training: the numbers by hand, the verdicts, and what a model is told."""

import math
import random
from pathlib import Path

import pytest
import torch

from lab_run import lab_trainer
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.demo import make_rows
from native_reasoning.objective.types import Scores
from native_reasoning.training.headroom import Asked, _asked, ask, judge, summarise

ROWS = make_rows("short_answer", "train", 64, seed=11)
TRACES = {"closed": 1.0, "ended": 0.0, "distinct": 1.0, "flat_groups": 0.0, "uplift": 0.5}


def scores(answer, baseline) -> Scores:
    l, b = torch.tensor(answer).log(), torch.tensor(baseline).log()
    k = len(answer)
    one = torch.ones(k, 1)
    return Scores(-one, one.bool(), l, b, torch.zeros(k), torch.ones(k).bool())


def test_what_a_trace_is_worth_by_hand():
    """Hard are the tokens under a half without a trace; the end of the turn is none of them."""
    baseline = [0.9, 0.1, 0.2, 0.01]
    own = scores([[0.1, 0.5, 0.8, 1e-6], [0.9, 0.1, 0.1, 0.9]], baseline)
    others = [scores([[0.9, 0.3, 0.5, 0.9], [0.9, 0.1, 0.2, 0.9]], baseline),
              scores([[0.9, 0.1, 0.1, 0.9], [0.9, 0.5, 0.5, 0.9]], baseline)]  # fmt: skip
    short = _asked(own, others, (1.0, 0.0, 0.0), short=True)
    assert short.own == pytest.approx((0.4, 0.01))
    assert (short.none, short.other) == pytest.approx((0.02, (0.15 + 0.25) / 2))
    assert (short.right, short.right_no_think) == ((1.0, 0.0), 0.0)
    assert short.headroom == pytest.approx(0.4 - 0.205)  # the average trace does the most of them
    assert short.known == pytest.approx(math.log(0.9 * 0.1 * 0.2) / 3)
    long = _asked(own, others, (1.0, 0.0, 0.0), short=False)
    assert long.own == pytest.approx((0.65, 0.1))
    assert (long.none, long.other) == pytest.approx((0.15, (0.4 + 0.5) / 2))
    assert long.headroom == pytest.approx(0.65 - 0.45)
    easy = _asked(scores([[0.1, 0.9]], [0.9, 0.9]), others[:1], (0.0, 0.0), short=True)
    assert (easy.own, easy.none) == ((1.0,), 1.0)  # there is no hard token


def found(*, rows=64, right=0.2, none=0.1, best=0.9, usual=0.1, other=0.1, short=True, **metrics):
    """The numbers of questions of which half have one trace that is ``best``."""
    asked = [
        Asked((float(i < 2 * rows * right), 0.0), float(i < rows * none),
              (best if i % 2 else usual, usual), other, usual, -1.0)
        for i in range(rows)
    ]  # fmt: skip
    return summarise(asked, {**TRACES, **metrics}, short=short)


LEARNT = {"right": 0.5, "none": 0.95}
LONG = {"short": False, "best": 0.5, "usual": 0.3, "other": 0.3}
CASES = [
    ({}, {}, "worth training"),
    (LONG, {}, "worth training"),
    (LEARNT, {}, "nothing to learn"),
    ({**LEARNT, "closed": 0.1}, {}, "nothing to learn"),
    ({"best": 0.1}, {}, "nothing to reinforce"),
    ({"other": 0.9}, {}, "nothing to reinforce"),  # another question's traces do as much
    ({"best": 0.3, "rows": 4}, {}, "not decided"),
    ({"best": 0.3, "usual": 0.3}, {}, "nothing to reinforce"),  # its traces are alike
    ({"flat_groups": 0.95}, {}, "nothing to reinforce"),
    ({"closed": 0.1}, {}, "worth training"),  # they help without their tag
    ({"closed": 0.1, "best": 0.1}, {}, "format first"),
    ({"closed": 0.1}, {"preset": "verifree"}, "format first"),  # an open trace is worth nothing
    ({"spread_share_end": 0.9}, {}, "format first"),
    ({"right": 0.5, "best": 0.1, "usual": 0.0}, {}, "format first"),  # right in other words
    ({"best": 0.1}, {"new": True}, "format first"),
    ({}, {"new": True}, "worth training"),
]


@pytest.mark.parametrize(("numbers", "asked", "verdict"), CASES)
def test_verdicts(numbers, asked, verdict, tmp_path):
    new = asked.get("new", False)
    config = NRTConfig(output_dir=str(tmp_path), preset=asked.get("preset", "nrt-ws"), use_cpu=True)
    told = judge(found(**numbers), config, new=new)
    assert told.verdict == verdict
    assert told.reason.startswith(verdict)
    assert bool(told.settings) == (verdict == "format first")


def test_the_verdict_says_which_number_decided_and_what_to_set(tmp_path):
    config = NRTConfig(output_dir=str(tmp_path), preset="nrt-ws", use_cpu=True)
    bare = NRTConfig(output_dir=str(tmp_path), preset="rlpr", use_cpu=True)
    numbers = found()
    interval = f"{numbers['headroom_low']:.2f} to {numbers['headroom_high']:.2f}"
    assert f"the answer 0.20 ({interval}) more" in judge(numbers, config, new=False).reason
    assert "--sample 16" in judge(found(best=0.3, rows=4), config, new=False).reason
    assert "95% (" in judge(found(**LEARNT), config, new=False).reason
    nothing = found(best=0.1)
    assert judge(nothing, config, new=True).settings == {"format_warmup_steps": 20}
    told = judge(nothing, bare, new=True)  # nothing would train the format
    assert told.reason.endswith("--format-warmup-steps 20 --objective.format-loss-coef 0.3")
    told = judge(found(best=0.1, closed=0.1, ended=0.8), config, new=False)
    assert told.settings == {"format_warmup_steps": 20}
    told = judge(found(best=0.1, closed=0.1, ended=0.2), config, new=False)  # the limit cuts them
    assert told.settings == {"max_trace_length": 4 * config.max_trace_length}
    ends = judge(found(spread_share_end=0.9), config, new=False)
    assert ends.settings == {"objective.reward_span": "answer"}


def ask_lab(folder: Path, rows, count: int, **settings):
    numbers = {"num_generations": 8, "max_trace_length": 16, "max_steps": 1, **settings}
    return ask(lab_trainer(folder, rows=rows, **numbers), count, lambda text: None)


def test_the_embedded_base_is_worth_training_and_not_on_answers_of_chance(tmp_path):
    there = ask_lab(tmp_path / "sums", ROWS, 32)
    assert there["verdict"] == "worth training"
    assert (there["questions"], there["traces"], there["compared"]) == (32, 8, True)
    assert there["accuracy"] < there["pass_at_k"]
    answers = [row["answer"] for row in ROWS]
    random.Random(0).shuffle(answers)
    dealt = [{**row, "answer": a} for row, a in zip(ROWS, answers, strict=True)]
    nothing = ask_lab(tmp_path / "chance", dealt, 64)
    assert nothing["verdict"] in ("nothing to reinforce", "not decided")
    assert nothing["pass_at_k"] > 0.4  # which says nothing where ten answers are possible
    assert nothing["headroom"] < 0.05 < there["headroom"]


def test_it_asks_the_questions_that_training_takes_first(tmp_path):
    trainer = lab_trainer(tmp_path / "run", rows=ROWS, max_steps=1)
    first = trainer.collector.schedule.step(0).rows
    seen = []
    cells = trainer.collector.cells
    trainer.collector.cells = lambda groups, *rest: seen.extend(groups) or cells(groups, *rest)
    ask(trainer, 3, lambda text: None)
    assert [group.example.row_id for group in seen] == list(first)


@pytest.mark.parametrize("preset", ["rlpr", "latro", "nover"])
def test_methods_that_sample_answers_or_ask_copies_are_asked_too(preset, tmp_path):
    told = ask_lab(tmp_path / "run", ROWS[:6], 6, preset=preset, num_generations=4)
    assert told["questions"] == 6
    assert 0 <= told["flat_groups"] <= 1
