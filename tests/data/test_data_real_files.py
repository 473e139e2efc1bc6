"""The real data sets of ``shared/data`` that are free for training, with the right options."""

from pathlib import Path

import pytest

from native_reasoning.config.errors import DataError
from native_reasoning.data import content_hash, load_examples

FOLDER = Path(__file__).resolve().parents[2] / "../shared/data"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the real data sets are not beside this checkout (../shared/data)"
)


@pytest.mark.parametrize(
    ("file", "options", "kept", "first"),
    [
        ("gsm8k/train.jsonl", {"answer_regex": r"####\s*(.*)"}, 900, "72"),
        ("gsm8k", {"answer_regex": r"####\s*(.*)"}, 900, "72"),
        ("strategyqa/train.jsonl", {}, 500, "false"),
        ("svamp/all.jsonl", {"prompt_column": "Body+Question"}, 300, "51"),
        ("medquad/train.jsonl", {}, 299, None),
        ("pubmedqa/train.jsonl", {"answer_column": "LONG_ANSWER"}, 200, None),
        (
            "pubmedqa/train.jsonl",
            {"prompt_column": "CONTEXTS+QUESTION", "answer_column": "final_decision"},
            200,
            "yes",
        ),
        (
            "self_instruct/seed_tasks.jsonl",
            {
                "prompt_column": "instruction+instances.0.input",
                "answer_column": "instances.0.output",
            },
            175,
            None,
        ),
        ("oasst/messages_train.jsonl", {}, 50, None),
        ("mmlu/dev.jsonl", {"prompt_column": "question+choice0+choice1+choice2+choice3"}, 284, "1"),
    ],
)
def test_a_training_file_is_read(file, options, kept, first):
    data = load_examples(FOLDER / file, **options)
    report = data.report
    assert report.kept == len(data.examples) == kept
    assert report.read == kept + sum(entry.count for entry in report.dropped)
    assert {entry.reason for entry in report.dropped} <= {"duplicate"}
    assert first is None or data.examples[0].answer == first
    assert content_hash(data.examples) == content_hash(
        load_examples(FOLDER / file, **options).examples
    )


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("pubmedqa/train.jsonl", "--answer-column final_decision"),
        ("self_instruct/seed_tasks.jsonl", "--answer-column instances.0.output"),
        ("bbh/test.jsonl", "--prompt-column input --answer-column target"),
        ("drop/dev.jsonl", "--prompt-column context"),
        ("math/math500_test.jsonl", "--prompt-column problem"),
    ],
)
def test_the_message_for_a_file_of_another_shape_leads_to_the_options(file, fix):
    with pytest.raises(DataError, match="not found") as caught:
        load_examples(FOLDER / file)
    assert caught.value.fix == fix
    words = fix.split()
    options = {
        flag.strip("-").replace("-", "_"): column
        for flag, column in zip(words[::2], words[1::2], strict=True)
    }
    report = load_examples(FOLDER / file, **options).report
    assert report.read == report.kept + report.count("duplicate")
