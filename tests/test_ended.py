"""A trace that an end-of-turn token stopped: the tag is spliced in, the decision is kept."""

import pytest
import torch

from native_reasoning.data.rows import Traces
from native_reasoning.scoring.packing import LAYOUTS
from native_reasoning.scoring.scorer import pack, unpack
from test_scoring import GROUPS, KINDS, TAG, TEMPLATE, models, row_logps

TURN, EOS = TEMPLATE.end_ids
GROUP = GROUPS[0]
TRACES = Traces(
    ids=((11, 12), (11, 12), (), (14,), (11, 12, TAG)),
    closed=(False, False, False, False, True),
    ended=(TURN, None, TURN, EOS, None),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_decision_to_end_is_the_last_token_of_the_trace(kind, layout, temperature):
    scoring, plain = models(kind)
    packed = pack([GROUP], [TRACES], TEMPLATE, layouts=(layout,), temperature=temperature)
    (scores,) = unpack(packed, scoring(score=packed.batch), TEMPLATE)
    assert TRACES.lengths == (3, 2, 1, 2, 3)
    assert scores.trace_mask.sum(-1).tolist() == [3, 2, 1, 2, 3]
    with torch.no_grad():
        for k, (ids, end) in enumerate(TRACES.stops()):
            sampled = (*ids, *(() if end is None else (end,)))
            row = (*GROUP.prompt_ids, *sampled)
            every = row_logps(plain, row, len(TEMPLATE.tokenizer), temperature)
            expected = torch.stack(every[len(GROUP.prompt_ids) - 1 :])
            got = scores.trace[k, : len(sampled)]
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)


def test_the_context_of_the_answer_does_not_hold_the_end_of_turn():
    scoring, _ = models("llama")
    without = Traces(TRACES.ids, TRACES.closed)
    both = []
    for traces in (TRACES, without):
        packed = pack([GROUP], [traces], TEMPLATE)
        (scores,) = unpack(packed, scoring(score=packed.batch), TEMPLATE)
        both.append((packed.row_of, scores))
    (rows, ended), (plain_rows, plain) = both
    assert rows == plain_rows
    assert rows[0][1] == rows[0][2] == rows[0][5]  # one row, whatever stopped the trace
    assert rows[0][0] == rows[0][3]  # the empty trace is the baseline's row
    assert torch.equal(ended.answer, plain.answer)
    assert torch.equal(ended.forced_tag, plain.forced_tag)
    assert torch.equal(ended.answer[2], ended.baseline)


def test_an_empty_trace_that_ended_the_turn_gets_a_policy_gradient():
    scoring, _ = models("llama")
    packed = pack([GROUP], [Traces(((),), (False,), (TURN,))], TEMPLATE)
    (scores,) = unpack(packed, scoring(score=packed.batch), TEMPLATE)
    scores.trace.sum().backward()
    gradient = scoring.get_output_embeddings().weight.grad
    assert gradient[TURN].norm() > 0
    assert gradient[TURN].norm() > gradient[TAG].norm()
