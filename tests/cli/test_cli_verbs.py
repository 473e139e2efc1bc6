"""``nrt eval``, ``check``, ``presets`` and ``demo``."""

import json
import sys
import types

import pytest

from cli_helpers import LENGTHS, SMALL, sums, write_rows
from native_reasoning.cli import check
from native_reasoning.config.papers import PRESETS
from native_reasoning.data.rows import Example

# -- eval --------------------------------------------------------------------------------------


def test_eval_of_a_model(model, held_out, nrt):
    command = [
        "eval",
        model,
        "--data",
        held_out,
        "--eval-samples",
        "2",
        "--max-tokens-per-forward",
        "1",
        *LENGTHS,
    ]
    code, text, _ = nrt(*command, "--eval-num-generations", "3", "--show", "1")
    assert code == 0
    assert text.startswith("-- 1 of 1:\nquestion:\n  | What is 5 + 0?\ntrace (")
    assert "accuracy of the majority" in text
    assert "2 questions" in text
    code, text, _ = nrt(*command, "--eval-num-generations", "3", "--show", "2", "--json")
    result = json.loads(text)
    assert (result["questions"], len(result["shown"])) == (2, 2)
    assert result["uplift_low"] <= result["uplift"] <= result["uplift_high"]


def test_eval_of_a_run_uses_its_model_and_settings(model, data, held_out, tmp_path, nrt):
    out = tmp_path / "run"
    command = ["train", "--model", model, "--data", data, "--eval-data", held_out, "--out", out]
    _, text, _ = nrt(*command, *SMALL, "--boundary", "new", "--learning-rate", "1e-2", "--json")
    trained = json.loads(text)["after"]
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for target in (out, out / "final", out / "checkpoint-2"):
        code, text, _ = nrt("eval", target, "--data", held_out, "--json")
        found = json.loads(text)
        assert code == 0
        assert {k: found[k] for k in trained} == pytest.approx(trained)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files


# -- check -------------------------------------------------------------------------------------


def test_check_with_a_model_shows_boundaries_and_tokens(model, data, held_out, nrt):
    code, text, _ = nrt("check", data, "--model", model, "--eval-data", held_out, *LENGTHS)
    assert code == 0
    assert "qa.jsonl: 9 of 9 rows kept (question -> answer)\n" in text
    assert "length in tokens" in text
    assert "<|im_start|>user" in text
    assert "  | 0<|im_end|>" in text
    assert "boundary              new: '<think>' '</think>'\n" in text
    assert "3 rows, 0 of them in training" in text
    warning, offer = text.partition("\nwarnings:\n")[2].splitlines()
    assert offer == "--sample 32 asks the model: is there anything to reinforce?"
    assert "<think> and </think> are new to this model" in warning
    assert "--format-warmup-steps 20" in warning
    _, text, _ = nrt("check", data, "--model", model, *LENGTHS, "--format-warmup-steps", "20")
    assert "\nno warnings\n" in text


def test_check_warns(model, tmp_path, nrt):
    rows = [
        {"Body": "There were apples.", "Question": f"How many, {i}?", "Answer": f"{i}\n#### {i}"}
        for i in range(4)
    ]
    path = write_rows(tmp_path / "qa.jsonl", [*rows, {"Question": "?", "Answer": None}])
    arguments = ["check", path, "--eval-data", path, "--model", model, "--max-answer-length", "4"]
    code, text, _ = nrt(*arguments, "--json")
    found = json.loads(text)
    warnings = "\n".join(found["warnings"])
    assert code == 0
    assert (
        "Body is not used, though the question may need it: "
        r"--prompt-template '{Body}\n{Question}'" in warnings
    )
    assert r"--answer-regex '####\s*(.*)'" in warnings
    assert "held-out questions are training questions too (first: line 1" in warnings
    assert "4 rows have answers of more than 4 tokens" in warnings
    assert found["dropped"][0]["places"] == ["line 5"]
    _, text, _ = nrt(*arguments)
    assert "1 null: the row has no value in a column (line 5)" in text
    assert "\nwarnings:\n  ! Body" in text
    _, text, _ = nrt(
        "check", path, "--prompt-column", "Body+Question", "--answer-regex", r"####\s*(.*)"
    )
    assert f"1 of 5 rows of {path} are not used" in text
    assert "There were apples.\n  | How many, 0?" in text
    assert "answers               4 number" in text


def test_check_asks_the_model(model, data, nrt, refuses):
    arguments = ["check", data, "--model", model, *LENGTHS, "--num-generations", "2"]
    code, text, _ = nrt(*arguments, "--sample", "4", "--json")
    told = json.loads(text)["headroom"]
    assert code == 0
    assert told["verdict"] == "format first"  # new think tokens, and random weights
    assert (told["questions"], told["traces"]) == (4, 2)
    assert told["seconds_per_step"] > 0
    assert told["steps"] == 6  # three epochs of nine rows, eight of them a step
    text = nrt(*arguments, "--sample", "4")[1]
    assert "4 questions x 2 traces" in text
    assert text.splitlines()[-1] == told["reason"]
    assert "--sample 32 asks the model" in nrt(*arguments)[1]
    assert "without --model" in refuses("check", data, "--sample", "4")[0]
    assert "--sample 1 of" in refuses(*arguments, "--sample", "1")[0]
    assert "preset 'sft'" in refuses(*arguments, "--sample", "4", "--preset", "sft")[0]


def test_check_counts_distinct_answers(tmp_path, nrt):
    answers = ["Yes", "no", " yes", "NO "]
    rows = [{"question": f"Is {i} odd?", "answer": answers[i % 4]} for i in range(20)]
    _, text, _ = nrt("check", write_rows(tmp_path / "two.jsonl", rows))
    assert "  ! not more than 2 distinct answers ('no', 'yes'): hard to learn from" in text
    _, text, _ = nrt("check", write_rows(tmp_path / "short.jsonl", rows[1:]))
    assert text.split("\n--model")[0].endswith("no warnings")
    for i in range(2):
        rows[i]["answer"] = f"perhaps {i}"
    _, text, _ = nrt("check", write_rows(tmp_path / "four.jsonl", rows))
    assert text.split("\n--model")[0].endswith("no warnings")


def _example(question: str, answer: str) -> Example:
    return Example((("user", question),), answer, 0, 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("51", "number"), ("$1,234.5", "number"), ("3/4", "number"), ("the red one", "short"),
     ("a b c d e f", "long")],
)  # fmt: skip
def test_answer_kinds(answer, kind):
    assert check.answer_kind(answer) == kind


def test_leaks_are_whole_words():
    rows = [_example("Is it Paris or Rome?", "paris"), _example("In 1512?", "51")]
    assert [check.leaks(row) for row in rows] == [True, False]


def test_percentiles_and_overlap():
    assert check.percentiles([5]) == {"p50": 5, "p90": 5, "p99": 5, "max": 5}
    assert check.percentiles(range(101)) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert check.overlap([_example("One  two?", "1")], [_example("one two?", "2")]) == [1]


def test_columns_beside_an_answer_in_a_list(tmp_path):
    from native_reasoning.data import load_examples

    rows = [
        {"instruction": "Add.", "instances": [{"input": f"{i} and 1", "output": "x"}]} for i in "12"
    ]
    path = write_rows(tmp_path / "tasks.jsonl", rows)
    report = load_examples(path, answer_column="instances.0.output").report
    warning = report.warnings()[0]
    assert warning.startswith("instances.0.input is not used")
    assert warning.endswith(r"--prompt-template '{instruction}\n{instances.0.input}'")


# -- presets and demo --------------------------------------------------------------------------


def test_presets(nrt):
    code, text, _ = nrt("presets")
    assert code == 0
    assert text.splitlines()[0].split() == ["preset", "rewards"]
    assert all(f"\n{name} " in text for name in PRESETS)
    assert set(json.loads(nrt("presets", "--json")[1])) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_explained_setting_by_setting(name, nrt):
    _, text, _ = nrt("presets", name)
    assert text.startswith(f"{name}: {PRESETS[name].method.title}\n{PRESETS[name].summary}\n")
    assert json.loads(nrt("presets", name, "--json")[1])["scale"] == PRESETS[name].settings.scale


def test_demo_is_wired(nrt, monkeypatch):
    module = types.ModuleType("native_reasoning.demo.race")

    def run_demo(seed, out, say):
        say("training")
        return {"seed": seed, "out": out}

    module.run_demo, module.render = run_demo, lambda result: f"seed {result['seed']}"
    monkeypatch.setitem(sys.modules, "native_reasoning.demo.race", module)
    assert nrt("demo") == (0, "seed 0\n", "training\n")
    assert json.loads(nrt("demo", "--seed", "3", "--out", "x", "--json")[1]) == {
        "seed": 3,
        "out": "x",
    }


def test_rows_of_the_same_source_by_split(tmp_path, nrt):
    folder = tmp_path / "sums"
    folder.mkdir()
    write_rows(folder / "train.jsonl", sums(0, 2))
    write_rows(folder / "test.jsonl", sums(7, 8))
    code, text, _ = nrt("check", folder, "--eval-data", f"{folder}[test]", "--json")
    assert code == 0
    found = json.loads(text)
    assert (found["kept"], found["eval_data"]["rows"], found["eval_data"]["overlap"]) == (6, 3, 0)
