"""Exchanged traces against plain forwards of an untouched model, and leakage by hand."""

import math
from dataclasses import replace

import pytest
import torch

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Traces
from native_reasoning.records.folder import read_metrics
from native_reasoning.rollout.window import MicroBatch
from native_reasoning.scoring.diagnostics import BINS, Finding, diagnose, summary, taken_over
from native_reasoning.scoring.scorer import Scorer
from native_reasoning.training.trainer import NRTTrainer
from test_scoring import GROUPS, TAG, TEMPLATE, TRACES, expected, group, models
from tiny import QA, byte_tokenizer, tiny_model

MICROS = (MicroBatch(GROUPS[:2], TRACES[:2]), MicroBatch(GROUPS[2:], TRACES[2:]))


def scorer(temperature: float = 1.0) -> Scorer:
    return Scorer(TEMPLATE, torch.device("cpu"), temperature, ("rows", "shared"), 1e-5)


def mean(values) -> float:
    return float(sum(values) / len(values))


@pytest.mark.parametrize("most", [math.inf, 100, 1])
def test_against_plain_forwards(most):
    scoring, plain = models("llama")
    found = diagnose(MICROS, replace(scorer(), max_tokens=most), scoring)
    firsts = [(t.ids[0], t.closed[0]) for t in TRACES]
    with torch.no_grad():
        own = [expected(plain, g, *f, TEMPLATE) for g, f in zip(GROUPS, firsts, strict=True)]
        others = [expected(plain, g, *firsts[(i + 1) % 3], TEMPLATE) for i, g in enumerate(GROUPS)]
        none = [expected(plain, g, (), False, TEMPLATE)[1] for g in GROUPS]
    assert len(found) == 3
    for i, finding in enumerate(found):
        gain = [a - b for a, b in zip(own[i][1], others[i][1], strict=True)]
        assert finding.specificity == pytest.approx(mean(gain), abs=1e-5)
        j = (i + 1) % 3
        length = len(firsts[j][0])
        dependence = float(sum(own[j][0]) - sum(others[i][0])) / length
        assert finding.dependence == pytest.approx(dependence, abs=1e-5)
        uplift = [a - b for a, b in zip(own[i][1], none[i], strict=True)]
        assert finding.clean_uplift == pytest.approx(mean(uplift[:-1]), abs=1e-5)
        assert sum(count for count, _, _ in finding.bins) == len(gain)
        assert sum(total for _, total, _ in finding.bins) == pytest.approx(
            float(sum(gain)), abs=1e-4
        )


def test_a_prompt_whose_scores_are_not_numbers_has_no_finding():
    whole, _ = models("llama")
    spoiled, _ = models("llama")
    with torch.no_grad():
        spoiled.get_input_embeddings().weight[7] = math.nan  # stands in the third answer alone
    found = diagnose(MICROS, scorer(), spoiled)
    assert found == diagnose(MICROS, scorer(), whole)[:1]  # the second is compared with the third


def test_the_model_is_left_as_it_was():
    scoring, _ = models("llama")
    scoring.train()
    before = {name: value.clone() for name, value in scoring.state_dict().items()}
    diagnose(MICROS, scorer(), scoring)
    assert scoring.training
    assert all(p.grad is None for p in scoring.parameters())
    assert all(torch.equal(before[name], value) for name, value in scoring.state_dict().items())


def test_prompts_that_are_the_same_count_once_and_alone_they_say_nothing():
    scoring, _ = models("llama")
    twice = MicroBatch((GROUPS[0], GROUPS[0]), (TRACES[0], TRACES[1]))
    assert diagnose([twice], scorer(), scoring) == []
    both = MicroBatch((GROUPS[0], GROUPS[0], GROUPS[1]), TRACES)
    alone = MicroBatch((GROUPS[0], GROUPS[1]), (TRACES[0], TRACES[2]))
    one, other = (diagnose([m], scorer(), scoring) for m in (both, alone))
    assert len(one) == len(other) == 2
    for a, b in zip(one, other, strict=True):
        assert a.specificity == pytest.approx(b.specificity, abs=1e-5)


def test_an_empty_trace_is_not_specific():
    scoring, _ = models("llama")
    empty = Traces(((TAG,),), (True,))
    found = diagnose([MicroBatch(GROUPS[:2], (empty, TRACES[1]))], scorer(), scoring)
    assert found[0].specificity is None
    assert found[1].specificity is not None
    assert found[1].dependence is None  # of the empty trace
    assert found[0].dependence is not None


# -- Leakage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "trace", "prompt", "hits"),
    [
        ("a b c d e f g", "x b c d e f y", "", [0, 1, 1, 1, 1, 1, 0]),
        ("a b c d e f g", "b c d e x f g", "", [0] * 7),  # four in a row are not enough
        ("a b c d e f g", "b c d e f", "q b c d e f r", [0] * 7),  # the prompt had it
        ("a b c", "z a b c", "", [1, 1, 1]),  # short answers: all of it
        ("a b c", "z a b", "", [0, 0, 0]),
        ("", "a", "", []),
        ("a b c d e", "", "", [0] * 5),
    ],
)
def test_what_counts_as_taken_over(answer, trace, prompt, hits):
    found = taken_over(*(text.split() for text in (answer, trace, prompt)))
    assert found == [bool(hit) for hit in hits]


def test_a_trace_that_states_the_answer_leaks():
    scoring, _ = models("llama")
    answer = tuple(range(200, 206))
    asked = group(range(50, 60), answer)
    traces = (Traces(((*answer, TAG),), (True,)), TRACES[1])
    (found, other) = diagnose([MicroBatch((asked, GROUPS[2]), traces)], scorer(), scoring)
    assert found.leak == (1.0, 0.0)
    assert found.clean_uplift is None
    assert other.leak == (0.0, 0.0)  # six tokens, none of them in either trace
    values = summary([found, other])
    assert values["leakage"] == values["restated"] == 0.5
    assert values["clean_uplift"] == other.clean_uplift


def test_short_answers_never_alarm():
    scoring, _ = models("llama")
    traces = (Traces(((40, 41, 42, TAG),), (True,)), TRACES[1])
    found = diagnose([MicroBatch(GROUPS[:2], traces)], scorer(), scoring)
    assert found[0].leak is None
    assert "leakage" not in summary(found)


def test_the_summary_by_hand():
    nothing = tuple((0, 0.0, 0.0) for _ in BINS)
    findings = [
        Finding(0.5, 1.0, (0.4, 0.1), 0.3, ((2, 1.0, 3.0), (0, 0.0, 0.0), (1, 0.5, 0.0))),
        Finding(0.1, None, None, None, ((1, 0.5, 0.0), (0, 0.0, 0.0), (0, 0.0, 0.0))),
        Finding(None, 0.0, (1.0, 0.0), 0.1, nothing),
    ]
    values = summary(findings)
    assert values["specificity"] == pytest.approx(0.3)
    assert values["specificity_se"] == pytest.approx(0.2)  # sd 0.283 over 2 prompts
    assert values["trace_dependence"] == 0.5
    assert values["leakage"] == pytest.approx((0.3 + 1.0) / 2)
    assert values["restated"] == 0.5
    assert values["clean_uplift"] == pytest.approx(0.2)
    assert values["gain_hard"] == pytest.approx(1.5 / 3)
    assert values["uplift_hard"] == pytest.approx(1.0)
    assert "gain_middle" not in values
    assert values["gain_easy"] == 0.5
    assert summary([]) == {}


# -- In a run --------------------------------------------------------------------------------------


def test_a_run_measures_every_few_steps_and_trains_the_same(tmp_path):
    def trained(name: str, steps: int) -> NRTTrainer:
        args = NRTConfig(
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_generations=2,
            max_trace_length=4,
            max_steps=5,
            diagnostics_steps=steps,
            save_strategy="no",
            use_cpu=True,
        )
        trainer = NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer())
        trainer.train()
        return trainer

    with_it, without = trained("with", 2), trained("without", 0)
    for a, b in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b)
    lines = [m for m in read_metrics(tmp_path / "with") if "uplift" in m]
    assert [("trace_dependence" in line) for line in lines] == [True, False, True, False, True]
    assert all(math.isfinite(line["trace_entropy"]) and line["trace_entropy"] > 0 for line in lines)
    assert all(line["short"] == 1 for line in lines)  # of four tokens at most
    assert not any("specificity" in line for line in read_metrics(tmp_path / "without"))
