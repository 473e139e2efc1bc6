"""The open window of a checkpoint, dealt out to another number of ranks; and when it is refused."""

from dataclasses import replace

import pytest
import torch

from native_reasoning.config.errors import RunError
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.objective.types import Judgement, Scores, Signal, Verdict
from native_reasoning.rollout.schedule import Schedule, rank_share
from native_reasoning.rollout.window import Cell, Recall, Window, micro_batches

DEVICE = torch.device("cpu:0")  # what accelerate calls it with several processes
GROUPS = [
    PromptGroup(Example((("user", "q"),), "a", row, row + 1), (1,) * (row % 5 + 1), (2, 3))
    for row in range(7)
]
FILLER = replace(GROUPS[0], weight=0.0)


def group_of(row):
    return FILLER if row is None else GROUPS[row]


#: Two mini-batches of four prompts; the second has three rows and a filler.
ROWS = Schedule(rows=7, prompts=4, seed=3, minibatches=2).rollout(0)


def cell(row: int | None) -> Cell:
    """What a rank would know of a row: its numbers are the row's."""
    n = -1.0 if row is None else float(row)
    length = 1 if row is None else row % 3 + 1
    verdict = Verdict(*(torch.tensor([row == 2, True]) for _ in range(3)))
    scores = Scores(
        trace=torch.full((2, length), n),
        trace_mask=torch.ones(2, length, dtype=torch.bool),
        answer=torch.full((2, 2), n),
        baseline=torch.full((2,), n),
        forced_tag=torch.zeros(2),
        closed=torch.tensor([True, False]),
        verdict=verdict,
        frozen=Judgement(torch.full((2,), n), trace=torch.full((2, length), n - 1)),
    )
    signal = replace(Signal.nothing(scores), spread=n)
    group = group_of(row)
    traces = Traces(((4,) * length, (5,)), (True, False), (None, 6), ((7,), ()), ((n,), (n,)))
    return Cell(group, traces, verdict, Recall(signal, scores))


def shares(rank: int, ranks: int, per_device: int) -> list[list[tuple[int | None, ...]]]:
    return [rank_share(rows, rank, ranks, per_device) for rows in ROWS]


def windows(ranks: int, per_device: int) -> list[Window]:
    made = []
    for rank in range(ranks):
        micros = [
            tuple(micro_batches([cell(r) for b in share for r in b], share))
            for share in shares(rank, ranks, per_device)
        ]
        made.append(Window(8, tuple(micros)))
    return made


def told(window: Window) -> list[list[list[tuple]]]:
    """Everything that a window says, as text."""
    return [
        [
            [
                (
                    group.example.row_id,
                    group.weight,
                    traces,
                    str(vars(recall.scores)),
                    str(vars(recall.scores.frozen)["trace"]),
                    str(vars(recall.signal)),
                    str(vars(verdict)),
                )
                for group, traces, recall, verdict in zip(
                    m.groups, m.traces, m.recalls, m.verdicts, strict=True
                )
            ]
            for m in minibatch
        ]
        for minibatch in window.minibatches
    ]


@pytest.mark.parametrize("then", [(1, 4), (1, 2), (2, 2), (2, 1), (4, 1)])
@pytest.mark.parametrize("first", [(1, 4), (2, 2), (4, 1)])
def test_any_number_of_ranks_gets_the_window_that_it_would_have_made(
    first, then, tmp_path, monkeypatch
):
    monkeypatch.setattr(Verdict, "__repr__", lambda v: str(vars(v)))
    monkeypatch.setattr(
        "native_reasoning.objective.types.Judgement.__repr__", lambda j: str(j.trace)
    )
    for rank, window in enumerate(windows(*first)):
        window.save(tmp_path, rank)
    for rank, expected in enumerate(windows(*then)):
        dealt = shares(rank, *then)
        window = Window.load(tmp_path, rank, dealt, group_of, DEVICE)
        assert window.rollout == 8
        assert told(window) == told(expected)


def test_where_the_ranks_are_as_they_were_each_reads_its_own_file(tmp_path):
    windows(2, 2)[1].save(tmp_path, 1)
    (tmp_path / "rollout_window_0.json").write_text("{}")
    window = Window.load(tmp_path, 1, shares(1, 2, 2), group_of, DEVICE)
    assert [len(m) for m in window.minibatches] == [1, 1]


def test_a_window_of_other_rows_is_refused(tmp_path):
    for rank, window in enumerate(windows(2, 2)):
        window.save(tmp_path, rank)
    other = [rank_share(rows, 0, 1, 4) for rows in Schedule(7, 4, seed=4, minibatches=1).rollout(0)]
    for folder, dealt in ((tmp_path, [[(5, 6, 99)]]), (tmp_path / "none", other)):
        with pytest.raises(RunError, match="has not the rows of this step"):
            Window.load(folder, 0, dealt, group_of, DEVICE)
