"""Token ids on the disk are those in memory, are made once, and serve a run like them."""

import json

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny
from native_reasoning.config.errors import DataError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data import load_examples, tokens
from native_reasoning.data.template import make_template
from native_reasoning.data.tokens import Groups, examples_of
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
    """Few rows are many, in a file and a cache of the test's own."""
    monkeypatch.setattr(tokens, "SMALL", 20)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def rows(tmp_path):
    """A file of all rows."""
    return write(tmp_path / "rows.jsonl", ROWS)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)

    return make


@pytest.fixture
def encoded(monkeypatch):
    """How many rows are encoded at a time."""
    counts, plain = [], tokens._encode

    def noted(examples, template):
        counts.append(len(examples))
        return plain(examples, template)

    monkeypatch.setattr(tokens, "_encode", noted)
    return counts


def in_memory(rows, template, config, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SMALL", 10_000)
        return make_groups(load_examples(rows), template, config, **options)


LIMITS = {"max_prompt_length": 55, "max_answer_length": 30}


@pytest.mark.parametrize("limits", [{}, LIMITS], ids=["all fit", "some fit"])
@pytest.mark.parametrize("context", [None, 575])
@pytest.mark.parametrize("kind", ["chatml", "strict"])
def test_groups_on_the_disk_are_those_in_memory(config, rows, limits, context, kind):
    core = tiny.byte_tokenizer() if kind == "chatml" else tiny.metaspace_tokenizer()
    template, settings = make_template(core), config(**limits)
    groups, report = make_groups(load_examples(rows), template, settings, context)
    expected, expected_report = in_memory(rows, template, settings, context=context)
    assert isinstance(groups, Groups)
    assert isinstance(expected, tuple)
    assert tuple(groups) == expected
    assert report == expected_report
    assert (report.kept < len(ROWS)) is (bool(limits) or context is not None)
    for group in groups:
        assert group == template.group(group.example)
    assert data_hash(groups) == data_hash(expected)
    assert list(examples_of(groups)) == [group.example for group in expected]


def test_groups_are_a_sequence(config, rows):
    groups, _ = make_groups(load_examples(rows), TEMPLATE, config(**LIMITS))
    expected = tuple(groups)
    assert groups[3] == groups[3 - len(groups)] == expected[3]
    assert tuple(groups[4:20:3]) == expected[4:20:3]
    assert tuple(groups[1::2][2:]) == expected[1::2][2:]
    assert list(examples_of(groups[2:5])) == [group.example for group in expected[2:5]]
    assert [group.example.row_id for group in groups] == list(range(len(groups)))
    assert groups[np.int64(2)] == expected[2]
    assert not groups[len(groups) :]
    with pytest.raises(IndexError):
        groups[len(groups)]


def test_part_of_the_examples_can_be_prepared(rows):
    data = load_examples(rows)
    some = data.examples[5:45]
    found = tokens.prepare(some, TEMPLATE)
    groups = found.groups(np.arange(0, 40, 3))
    assert isinstance(groups, Groups)
    assert [g.example.line for g in groups] == list(range(6, 46, 3))
    for group in groups:
        assert group == TEMPLATE.group(group.example)


# -- The cache -------------------------------------------------------------------------------------


def test_ids_are_made_once(config, encoded, rows):
    first, _ = make_groups(load_examples(rows), TEMPLATE, config())
    assert encoded == [50]
    again, _ = make_groups(load_examples(rows), TEMPLATE, config())
    assert encoded == [50]
    assert tuple(again) == tuple(first)


def test_other_limits_need_no_encoding_and_are_kept_to(config, encoded, rows):
    make_groups(load_examples(rows), TEMPLATE, config())
    encoded.clear()
    groups, report = make_groups(load_examples(rows), TEMPLATE, config(**LIMITS))
    assert not encoded
    assert (tuple(groups), report) == in_memory(rows, TEMPLATE, config(**LIMITS))


@pytest.mark.parametrize("other", ["tokens", "chat template", "system prompt", "boundary"])
def test_another_template_has_ids_of_its_own(config, encoded, rows, other):
    make_groups(load_examples(rows), TEMPLATE, config())
    core, options = tiny.byte_tokenizer(think=other == "tokens"), {}
    if other == "chat template":
        core.chat_template = tiny.R1
    elif other == "system prompt":
        options = {"system_prompt": "Be brief."}
    elif other == "boundary":
        options = {"boundary": "text"}
    template = make_template(core, **options)
    groups, _ = make_groups(load_examples(rows), template, config())
    assert encoded == [50, 50]
    assert all(group == template.group(group.example) for group in groups)


def test_the_ids_depend_on_the_merges_and_the_end_of_a_turn():
    state = json.loads(tiny.byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["merges"].pop()
    core = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>"
    )
    core.chat_template = tiny.CHATML
    same = make_template(tiny.byte_tokenizer())
    others = [make_template(core), make_template(tiny.byte_tokenizer(), extra_end_ids=(5,))]
    assert tokens._key((), same) == tokens._key((), TEMPLATE)
    assert all(tokens._key((), other) != tokens._key((), TEMPLATE) for other in others)


def test_an_encoding_that_was_interrupted_is_never_half(config, rows, monkeypatch):
    plain, done = tokens._encode, []

    def killed(examples, template):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(examples)
        return plain(examples, template)

    monkeypatch.setattr(tokens, "_BATCH", 8)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_encode", killed)
        with pytest.raises(KeyboardInterrupt):
            make_groups(load_examples(rows), TEMPLATE, config())
    groups, _ = make_groups(load_examples(rows), TEMPLATE, config())
    assert tuple(groups) == in_memory(rows, TEMPLATE, config())[0]


def test_rows_without_a_file_are_kept_too_and_other_rows_anew(config, encoded):
    groups, _ = make_groups(load_examples(ROWS), TEMPLATE, config())
    assert isinstance(groups, Groups)
    assert tuple(groups) == in_memory(ROWS, TEMPLATE, config())[0]
    encoded.clear()
    make_groups(load_examples(ROWS[:-1]), TEMPLATE, config())
    assert encoded == [49]
    make_groups(load_examples(ROWS), TEMPLATE, config())
    assert encoded == [49]


def test_nothing_is_written_outside_the_cache_and_nothing_is_said(config, rows, tmp_path, capfd):
    make_groups(load_examples(rows), TEMPLATE, config())
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "rows.jsonl"}
    assert list((tmp_path / "cache").rglob("*.arrow"))
    assert capfd.readouterr() == ("", "")  # no progress bars


def test_a_cache_that_cannot_be_written_is_our_error(config, rows, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    with pytest.raises(DataError, match="cannot be kept in .*cache: Not a directory") as caught:
        make_groups(load_examples(rows), TEMPLATE, config())
    assert "HF_DATASETS_CACHE" in caught.value.fix


# -- A run -----------------------------------------------------------------------------------------


def test_a_run_on_groups_from_the_disk_is_the_same_run(tmp_path, rows):
    seen = []
    for place, most in (("memory", 10_000), ("disk", 20)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tokens, "SMALL", most)
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
            trainer = NRTTrainer(
                tiny.tiny_model(), args, str(rows), str(rows), tiny.byte_tokenizer()
            )
            assert isinstance(trainer.train_groups, Groups) is (place == "disk")
            trainer.train()
            metrics = trainer.evaluate()
        lines = (tmp_path / place / "metrics.jsonl").read_text()
        seen.append((lines, {k: v for k, v in metrics.items() if "seconds" not in k}))
    assert repr(seen[0]) == repr(seen[1])
