"""Which rows each step takes, and what is left out of the data."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

import tiny
from native_reasoning.config.errors import DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import load_examples
from native_reasoning.data.template import make_template
from native_reasoning.rollout.schedule import (
    PlannedStep,
    Schedule,
    make_groups,
    make_schedule,
    rank_share,
    read_groups,
    require,
)

CASES = [
    Schedule(rows=rows, prompts=prompts, seed=3, minibatches=m, passes=n)
    for rows, prompts, m, n in product((1, 7, 12, 13), (1, 3, 4, 20), (1, 2, 3), (1, 2))
]


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_each_epoch_trains_every_row_once_per_pass(schedule):
    n = schedule.steps_per_epoch
    orders = []
    for epoch in range(3):
        plans = [schedule.step(step) for step in range(epoch * n, (epoch + 1) * n)]
        rows = [row for plan in plans for row in plan.rows if row is not None]
        assert Counter(rows) == dict.fromkeys(range(schedule.rows), schedule.passes)
        first = [r for plan in plans if plan.first_pass for r in plan.rows if r is not None]
        assert sorted(first) == list(range(schedule.rows))
        orders.append(first)
        for plan in plans:
            assert len(plan.rows) == schedule.prompts
            assert 1 <= plan.prompts == sum(r is not None for r in plan.rows)
        filled = [plan for plan in plans if plan.prompts < schedule.prompts]
        assert len(filled) == (schedule.passes if schedule.rows % schedule.prompts else 0)
    if schedule.rows > 7:
        assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("schedule", CASES, ids=str)
def test_every_step_finds_its_rows_in_the_rollout_it_names(schedule):
    n = 2 * schedule.steps_per_epoch
    plans = [schedule.step(step) for step in range(n)]
    for step, plan in enumerate(plans):
        assert plan.rollout <= step
        window = schedule.rollout(plan.rollout)
        assert window[plan.minibatch] == plan.rows
        assert schedule.step(plan.rollout).rollout == plan.rollout
        place = step - plan.rollout
        assert plan.minibatch == place % len(window)
        assert plan.first_pass is (place < len(window))
        assert place < len(window) * schedule.passes
        assert len(window) <= schedule.minibatches
    # a rollout never reaches into the next epoch
    assert plans[n // 2].rollout == n // 2


def test_schedule_by_hand():
    schedule = Schedule(rows=5, prompts=2, seed=0, minibatches=2, passes=2)
    a, b, c = (schedule.step(i).rows for i in (0, 1, 4))
    assert schedule.steps_per_epoch == 6
    assert c[1] is None
    assert [schedule.step(i) for i in range(6)] == [
        PlannedStep(a, 0, 0, True),
        PlannedStep(b, 0, 1, True),
        PlannedStep(a, 0, 0, False),
        PlannedStep(b, 0, 1, False),
        PlannedStep(c, 4, 0, True),
        PlannedStep(c, 4, 0, False),
    ]
    assert schedule.rollout(0) == [a, b]
    assert schedule.rollout(4) == [c]


def test_order_is_a_function_of_the_seed():
    one, other = (Schedule(rows=50, prompts=50, seed=s).step(0).rows for s in (0, 1))
    assert one != other
    assert Schedule(rows=50, prompts=50, seed=0).step(0).rows == one
    assert list(one) != sorted(one)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("per_device", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_partition_each_step_with_equal_shapes(ranks, per_device, accumulation):
    prompts = ranks * per_device * accumulation
    schedule = Schedule(rows=2 * prompts - 1, prompts=prompts, seed=0)
    for step in range(schedule.steps_per_epoch):
        rows = schedule.step(step).rows
        shares = [rank_share(rows, rank, ranks, per_device) for rank in range(ranks)]
        assert all([len(m) for m in share] == [per_device] * accumulation for share in shares)
        dealt = [row for share in shares for micro in share for row in micro]
        assert Counter(dealt) == Counter(rows)
        if ranks == 1:
            assert tuple(dealt) == rows


def test_schedule_of_a_run_counts_prompts_over_all_ranks(tmp_path):
    args = NRTConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        num_iterations=2,
        seed=7,
    )
    expected = Schedule(rows=20, prompts=6, seed=7, minibatches=2, passes=2)
    assert make_schedule(20, args) == expected
    args.data_seed = None
    assert make_schedule(20, args) == expected
    args.data_seed = 8
    assert make_schedule(20, args) == replace(expected, seed=8)


# -- Rows in token ids -----------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)

    return make


TEMPLATE = make_template(tiny.byte_tokenizer())
LONG = "so it goes on and on, " * 30


def examples(*extra):
    return load_examples([*tiny.QA[:3], *extra, *tiny.QA[3:6]])


def test_rows_that_fit_are_numbered_anew_in_order(config):
    data = examples({"question": LONG, "answer": "4"}, {"question": "short", "answer": LONG})
    groups, report = make_groups(data, TEMPLATE, config(max_prompt_length=80, max_answer_length=40))
    assert [g.example.row_id for g in groups] == list(range(6))
    assert [g.example.question for g in groups] == [row["question"] for row in tiny.QA[:6]]
    assert [g.example.line for g in groups] == [1, 2, 3, 6, 7, 8]
    assert (report.read, report.kept) == (8, 6)
    counts = {entry.reason: (entry.count, entry.places) for entry in report.dropped}
    assert counts == {"too_long_prompt": (1, ("row 4",)), "too_long_answer": (1, ("row 5",))}
    for group in groups:
        fresh = TEMPLATE.group(group.example)
        assert (group.prompt_ids, group.answer_ids) == (fresh.prompt_ids, fresh.answer_ids)


def test_limits_are_inclusive(config):
    data = examples()
    groups, _ = make_groups(data, TEMPLATE, config())
    prompt = max(len(g.prompt_ids) for g in groups)
    answer = max(len(g.answer_ids) for g in groups)
    exact = config(max_prompt_length=prompt, max_answer_length=answer)
    assert len(make_groups(data, TEMPLATE, exact)[0]) == 6
    for tight in (config(max_prompt_length=prompt - 1), config(max_answer_length=answer - 1)):
        kept, report = make_groups(data, TEMPLATE, tight)
        assert len(kept) == report.kept < 6


def test_rows_that_the_template_refuses_are_counted(config):
    strict = make_template(tiny.metaspace_tokenizer())
    bad = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    row = {"messages": [*bad, {"role": "assistant", "content": "c"}]}
    good = {"messages": [*bad[:1], {"role": "assistant", "content": "c"}]}
    data = load_examples([good, row])
    groups, report = make_groups(data, strict, config())
    assert len(groups) == 1
    assert report.count("refused_by_template") == 1


def test_data_set_that_was_not_given_is_named(config):
    require(make_groups(examples(), TEMPLATE, config())[0], "train_dataset")
    with pytest.raises(DataError, match="no train_dataset was given"):
        require((), "train_dataset")


def test_nothing_left_is_an_error(config):
    with pytest.raises(DataError, match="no usable row"):
        make_groups(examples(), TEMPLATE, config(max_prompt_length=2))


def test_groups_are_read_from_anything_or_nothing(config):
    assert read_groups(None, TEMPLATE, config()) == ((), None)
    from_rows, report = read_groups(tiny.QA, TEMPLATE, config())
    assert read_groups(load_examples(tiny.QA), TEMPLATE, config())[0] == from_rows
    assert report.kept == len(from_rows) == len(tiny.QA)
    renamed = [{"q": row["question"], "a": row["answer"]} for row in tiny.QA]
    columns = config(prompt_column="q", answer_column="a", answer_regex=r"is (\d+)")
    groups, _ = read_groups(renamed, TEMPLATE, columns)
    assert [g.example.answer for g in groups[:2]] == ["0", "1"]
