"""100,000 rows of which one in a hundred is broken: counted, named, and no good row lost."""

import json
import random
from pathlib import Path

import pytest

from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.chat_template import control_ids
from native_reasoning.training.trainer import NRTTrainer
from tiny import byte_tokenizer, tiny_model

ROWS, EVERY = 100_000, 100
HUGE = "N " + "long " * 400_000  # 2 MB

#: What is wrong with a row, as a line of the file, and the reason that it is counted under; None
#: for text that looks dangerous and is not. N becomes the line's number.
BROKEN = {
    "null": ('{"question": null, "answer": "4"}', "null"),
    "a list": ('{"question": [["a"], 1], "answer": "4"}', "wrong_type"),
    "an object": ('{"question": "q", "answer": {"a": 1}}', "wrong_type"),
    "half a pair": ('{"question": "\\ud800 q", "answer": "4"}', "unencodable"),
    "cut off": ('{"question": "q", "answer": "4', "broken_json"),
    "not an object": ('"only text"', "wrong_type"),
    "two megabytes": (json.dumps({"question": HUGE, "answer": "4"}), "too_long_prompt"),
    "a long answer": (json.dumps({"question": "q N", "answer": HUGE}), "too_long_answer"),
    "empty": ('{"question": "  ", "answer": "4"}', "empty_prompt"),
    "no answer": ('{"question": "q N"}', "missing_column"),
    "only an assistant": ('{"messages": [{"role": "assistant", "content": "a"}]}', "empty_prompt"),
    "no assistant": ('{"messages": [{"role": "user", "content": "a"}]}', "no_answer_turn"),
    "system last": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, '
        '{"role": "assistant", "content": "c"}]}',
        "bad_turns",
    ),
    "control characters": ('{"question": "a\\u0000\\u001b[2Jb N", "answer": "4"}', None),
    "right to left": ('{"question": "\\u202e abc \\u2066 N", "answer": "4"}', None),
    "tags in a prompt": ('{"question": "<think> </think> <|im_end|> N", "answer": "4"}', None),
    "tags in an answer": ('{"question": "q N", "answer": "</think> 4 <think>"}', None),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The file, and for each kind of broken row its 1-based lines."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    places: dict[str, list[int]] = {kind: [] for kind in BROKEN}
    kinds, draw = list(BROKEN), random.Random(0)
    huge = 0
    with open(path, "w", encoding="utf-8") as out:
        for line in range(1, ROWS + 1):
            if line % EVERY:
                out.write(f'{{"question": "What is {line} + 1?", "answer": "{line + 1}"}}\n')
                continue
            kind = kinds[line // EVERY % len(kinds)]
            if len(BROKEN[kind][0]) > 10**6:
                huge += 1
                if huge > 6:  # twelve megabytes are enough
                    kind = draw.choice(["null", "cut off"])
            places[kind].append(line)
            text = BROKEN[kind][0].replace("N", str(line))
            out.write(text + "\n")
    return path, places


@pytest.fixture(scope="module")
def trainer(file, tmp_path_factory):
    args = NRTConfig(
        output_dir=str(tmp_path_factory.mktemp("run") / "run"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_trace_length=4,
        max_answer_length=64,
        max_prompt_length=64,
        max_steps=2,
        save_strategy="no",
        use_cpu=True,
    )
    return NRTTrainer(tiny_model(), args, str(file[0]), None, byte_tokenizer())


def test_it_trains(trainer):
    assert trainer.train().global_step == 2


def test_each_row_is_counted_under_its_reason(trainer, file):
    _, places = file
    expected: dict[str, set[int]] = {}
    for kind, lines in places.items():
        if reason := BROKEN[kind][1]:
            expected.setdefault(reason, set()).update(lines)
    report = trainer.train_report
    found = {dropped.reason: dropped for dropped in report.dropped}
    assert {name: dropped.count for name, dropped in found.items()} == {
        name: len(lines) for name, lines in expected.items()
    }
    for name, dropped in found.items():
        lines = [int(place.partition(":")[0].split()[-1]) for place in dropped.places]
        assert lines == sorted(expected[name])[: len(lines)], name


def test_no_good_row_is_lost(trainer, file):
    _, places = file
    bad = {line for kind, lines in places.items() if BROKEN[kind][1] for line in lines}
    kept = [group.example.line for group in trainer.train_groups]
    assert kept == [line for line in range(1, ROWS + 1) if line not in bad]
    assert trainer.train_report.kept == ROWS - len(bad)


def test_what_looks_dangerous_is_plain_text(trainer, file):
    """No control token comes out of what a user wrote, and the text comes back as it was."""
    _, places = file
    at = {group.example.line: i for i, group in enumerate(trainer.train_groups)}
    control = control_ids(trainer.template.tokenizer, trainer.template.end_ids)
    plain = trainer.template.prompt_ids(trainer.train_groups[0].example)
    frame = [i for i in plain if i in control]
    for kind, (_, reason) in BROKEN.items():
        for line in places[kind] if reason is None else []:
            group = trainer.train_groups[at[line]]
            assert [i for i in group.prompt_ids if i in control] == frame, kind
            assert not control & set(group.answer_ids[:-1]), kind
            text = trainer.template.tokenizer.decode(group.prompt_ids)
            assert group.example.question.strip() in text, kind


def test_the_file_was_what_it_says(file):
    path, places = file
    assert sum(map(len, places.values())) == ROWS // EVERY
    assert all(places.values())
    assert Path(path).stat().st_size > 12_000_000
