"""Token ids on the disk are those in memory, are made once, and serve a run like them."""

import json

import numpy as np
import pytest

import tiny
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import load_examples, prepared, stored, workers
from native_reasoning.data.prepared import Groups, examples_of, sizes_of
from native_reasoning.data.template import make_template
from native_reasoning.rollout.schedule import data_hash, make_groups
from native_reasoning.training.trainer import NRTTrainer

TEMPLATE = make_template(tiny.byte_tokenizer())
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"What is {i} + {i % 3}?{' and so on' * (i % 7)}"},
            {"role": "assistant", "content": f"The sum is {i + i % 3}." + " Indeed." * (i % 5)},
        ]
    }
    for i in range(50)
]
ROWS[7]["messages"][0]["content"] = "What is <|im_end|> for?"
ROWS[9]["messages"].insert(0, {"role": "system", "content": " Be brief.\n"})


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Small chunks in a cache of the test's own, without processes."""
    monkeypatch.setattr(prepared, "CHUNK", 8)
    for module in (prepared, stored):
        monkeypatch.setattr(module, "SMALL", 20)
    monkeypatch.setattr(workers, "cores", lambda: 1)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)

    return make


@pytest.fixture
def encoded(monkeypatch):
    """How many rows each chunk has that is encoded."""
    counts, plain = [], prepared._table_of

    def noted(rows):
        table = plain(rows)
        counts.append(len(table))
        return table

    monkeypatch.setattr(prepared, "_table_of", noted)
    return counts


def in_memory(rows, template, config, **options):
    with pytest.MonkeyPatch.context() as patch:
        for module in (prepared, stored):
            patch.setattr(module, "SMALL", 10_000)
        return make_groups(load_examples(rows), template, config, **options)


LIMITS = {"max_prompt_length": 55, "max_answer_length": 30}


@pytest.mark.parametrize("limits", [{}, LIMITS], ids=["all fit", "some fit"])
@pytest.mark.parametrize("context", [None, 575])
@pytest.mark.parametrize("kind", ["chatml", "strict"])
def test_groups_on_the_disk_are_those_in_memory(config, limits, context, kind):
    core = tiny.byte_tokenizer() if kind == "chatml" else tiny.metaspace_tokenizer()
    template, settings = make_template(core), config(**limits)
    groups, report = make_groups(load_examples(ROWS), template, settings, context)
    expected, expected_report = in_memory(ROWS, template, settings, context=context)
    assert isinstance(groups, Groups)
    assert isinstance(expected, tuple)
    assert tuple(groups) == expected
    assert report == expected_report
    assert (report.kept < len(ROWS)) is (bool(limits) or context is not None)
    for group in groups:
        assert group == template.group(group.example)
    assert data_hash(groups) == data_hash(expected)
    assert list(examples_of(groups)) == [group.example for group in expected]
    for sizes, part in zip(sizes_of(groups), ("prompt_ids", "answer_ids"), strict=True):
        assert sizes.tolist() == [len(getattr(group, part)) for group in expected]
    assert [sizes.tolist() for sizes in sizes_of(groups)] == [
        sizes.tolist() for sizes in sizes_of(expected)
    ]


def test_groups_are_a_sequence(config):
    groups, _ = make_groups(load_examples(ROWS), TEMPLATE, config(**LIMITS))
    expected = tuple(groups)
    assert groups[3] == groups[3 - len(groups)] == expected[3]
    assert tuple(groups[4:20:3]) == expected[4:20:3]
    assert tuple(groups[1::2][2:]) == expected[1::2][2:]
    assert list(examples_of(groups[2:5])) == [group.example for group in expected[2:5]]
    assert sizes_of(groups[2:5])[0].tolist() == [len(g.prompt_ids) for g in expected[2:5]]
    assert [group.example.row_id for group in groups] == list(range(len(groups)))
    assert groups[np.int64(2)] == expected[2]
    assert not groups[len(groups) :]
    with pytest.raises(IndexError):
        groups[len(groups)]


def test_part_of_the_examples_can_be_prepared(config):
    data = load_examples(ROWS)
    some = data.examples[5:45]
    found = prepared.prepare(some, TEMPLATE)
    groups = found.groups(np.arange(0, 40, 3))
    assert isinstance(groups, Groups)
    assert [g.example.line for g in groups] == list(range(6, 46, 3))
    for group in groups:
        assert group == TEMPLATE.group(group.example)


# -- The cache -------------------------------------------------------------------------------------


def test_ids_are_made_once(config, encoded):
    first, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    assert encoded == [8] * 6 + [2]
    again, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    assert encoded == [8] * 6 + [2]
    assert tuple(again) == tuple(first)


def test_other_limits_need_no_encoding_and_are_kept_to(config, encoded):
    make_groups(load_examples(ROWS), TEMPLATE, config())
    encoded.clear()
    groups, report = make_groups(load_examples(ROWS), TEMPLATE, config(**LIMITS))
    assert not encoded
    assert (tuple(groups), report) == in_memory(ROWS, TEMPLATE, config(**LIMITS))


@pytest.mark.parametrize("other", ["tokens", "chat template", "system prompt", "boundary"])
def test_another_template_has_ids_of_its_own(config, encoded, other):
    make_groups(load_examples(ROWS), TEMPLATE, config())
    core, options = tiny.byte_tokenizer(think=other == "tokens"), {}
    if other == "chat template":
        core.chat_template = tiny.R1
    elif other == "system prompt":
        options = {"system_prompt": "Be brief."}
    elif other == "boundary":
        options = {"boundary": "text"}
    template = make_template(core, **options)
    groups, _ = make_groups(load_examples(ROWS), template, config())
    assert encoded == ([8] * 6 + [2]) * 2
    assert all(group == template.group(group.example) for group in groups)


def test_only_new_texts_are_encoded(config, encoded, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS[:40])))
    make_groups(load_examples(path), TEMPLATE, config())
    encoded.clear()
    path.write_text("\n".join(map(json.dumps, ROWS)))
    make_groups(load_examples(path), TEMPLATE, config())
    assert encoded == [8, 2]


def test_a_preparation_that_was_killed_goes_on(config, encoded, monkeypatch):
    plain, written = prepared.write_table, []

    def killed(path, table):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        plain(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write_table", killed)
        with pytest.raises(KeyboardInterrupt):
            make_groups(load_examples(ROWS), TEMPLATE, config())
    encoded.clear()
    groups, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    assert encoded == [8, 8, 8, 2]
    assert tuple(groups) == in_memory(ROWS, TEMPLATE, config())[0]


def test_a_damaged_file_is_made_again(config, encoded):
    groups, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    expected = tuple(groups)
    path = groups.prepared.tables[2]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    encoded.clear()
    again, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    assert encoded == [8]
    assert tuple(again) == expected


def test_processes_give_what_one_gives(config, monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    groups, report = make_groups(load_examples(ROWS), TEMPLATE, config(**LIMITS))
    assert isinstance(groups, Groups)
    assert (tuple(groups), report) == in_memory(ROWS, TEMPLATE, config(**LIMITS))


# -- A run -----------------------------------------------------------------------------------------


def test_a_run_on_groups_from_the_disk_is_the_same_run(tmp_path):
    seen = []
    for place, most in (("memory", 10_000), ("disk", 20)):
        with pytest.MonkeyPatch.context() as patch:
            for module in (prepared, stored):
                patch.setattr(module, "SMALL", most)
            args = NRTConfig(
                output_dir=str(tmp_path / place),
                use_cpu=True,
                max_steps=2,
                num_generations=2,
                max_trace_length=4,
                max_answer_length=60,
                gradient_accumulation_steps=2,
                eval_samples=3,
                eval_num_generations=1,
                report_to=[],
            )
            trainer = NRTTrainer(tiny.tiny_model(), args, ROWS, ROWS, tiny.byte_tokenizer())
            assert isinstance(trainer.train_groups, Groups) is (place == "disk")
            trainer.train()
            metrics = trainer.evaluate()
        lines = (tmp_path / place / "metrics.jsonl").read_text()
        seen.append((lines, {k: v for k, v in metrics.items() if "seconds" not in k}))
    assert repr(seen[0]) == repr(seen[1])
