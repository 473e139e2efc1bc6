"""``nrt eval --suite``."""

import json

import pytest

from native_reasoning.evaluation.suite import needs
from suite_data import write_all

ADDED = ["gain", "trace", "tokens", "closed"]
LENGTHS = ["--use-cpu", "--max-trace-length", "4", "--gen-kwargs", "max_gen_toks=6"]


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    return str(write_all(tmp_path_factory.mktemp("nine")))


def test_a_suite_off_and_on(model, nine, nrt, tmp_path):
    out = tmp_path / "answers.jsonl"
    code, text, err = nrt(
        *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--limit", "2", "--json"),
        *("--out", out, "--batch-size", "2", *LENGTHS),
    )
    assert code == 0, err
    assert "humaneval is left out" in err
    assert "asking, thinking off" in err
    result = json.loads(text.splitlines()[-1])
    rows = {row["benchmark"]: row for row in result["benchmarks"]}
    assert list(rows) == ["bbh", "mmlu", "drop", "popqa", "truthfulqa", "gsm8k", "math", "ifeval"]
    assert result["boundary"] == "text"
    assert set(result["versions"]) >= {"lm-eval", "torch", "native-reasoning"}
    bbh = rows.pop("bbh")  # whose filter wants a phrase that the boundary text has said
    assert "bbh is left out with thinking on: 'the answer is'" in err
    assert (bbh["off"]["value"], bbh["on"], bbh["gain"]) == (0.0, None, None)
    for row in rows.values():
        assert row["questions"] == 2
        assert row["gain"]["value"] == pytest.approx(row["on"]["value"] - row["off"]["value"])
        assert 0 <= row["on"]["trace_length"] <= 4
        assert len(row["prompts"]) == 16
    assert (rows["gsm8k"]["num_fewshot"], rows["gsm8k"]["task_version"]) == (5, 3.0)
    assert result["mean"]["off"]["value"] == pytest.approx(
        sum(row["off"]["value"] for row in rows.values()) / 7
    )
    items = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert len(items) == 7 * 2 * 2 + 2
    assert all((i["trace"] is None) == (i["mode"] == "off") for i in items)
    assert {i["subset"] for i in items if i["benchmark"] == "bbh"} == {
        "boolean_expressions",
        "word_sorting",
    }


def test_a_table_with_code_in_a_chat_template(model, nine, nrt):
    code, text, err = nrt(
        *("eval", model, "--suite=nrt9", "--data-dir", nine, "--tasks", "humaneval,mmlu,bbh"),
        *("--run-code", "--apply-chat-template", "--limit", "1", "--num-fewshot", "1", *LENGTHS),
    )
    assert code == 0, err
    lines = text.splitlines()
    assert lines[0].split()[3:] == ["thinking", "off", "thinking", "on", *ADDED]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["bbh", "exact_match,get-answer", "1"],
        ["mmlu", "acc", "1"],
        ["humaneval", "pass@1", "1"],
    ]
    assert lines[1].split()[-4:] == ["-"] * 4
    assert lines[4].startswith("mean")
    code, text, _ = nrt(
        *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa"),
        *("--thinking", "plain", "--limit", "2", *LENGTHS),
    )
    assert text.splitlines()[0].split() == ["benchmark", "metric", "n", "plain"]


@pytest.mark.parametrize(
    ("flags", "what", "fix"),
    [
        (["--suite", "nrt8"], "no suite 'nrt8' (did you mean 'nrt9'?)", "--suite nrt9"),
        (["--tasks", "gsm9k"], "no task 'gsm9k' (did you mean 'gsm8k'?)", "some of: bbh,mmlu"),
        (["--tasks", ","], "names no task", "--tasks gsm8k"),
        (["--thinking", "onn"], "--thinking is 'onn'", "one of: off on both plain"),
        (["--tasks", "humaneval"], "humaneval runs code", "--run-code"),
        (["--data", "x.jsonl"], "--data with --suite", "--data-dir"),
        (["--data-dir", "/nowhere"], "none of the benchmarks' files", "docs/benchmarks.md"),
        (["--limit", "0"], "--limit is 0", "from 1 on"),
        (["--limit", "x"], "--limit is 'x'", "10"),
        (["--gen-kwargs", "64"], "--gen-kwargs is '64'", "max_gen_toks=64"),
        (["--gen-kwargs", "max_gen_toks=x"], "max_gen_toks=x", "a whole number from 1 on"),
        (["--gen-kwargs", "max_gen_toks=-1"], "max_gen_toks=-1", "a whole number from 1 on"),
        (["--gen-kwargs", "foo=1"], "no setting 'foo'", "some of: max_gen_toks temperature"),
        (["--gen-kwargs", "temperature=hot"], "temperature=hot", "a number from 0 on"),
        (["--gen-kwargs", "do_sample=true"], "do_sample=True", "temperature=0.7"),
        (["--gen-kwargs", "top_p=0.9"], "top_p without", "temperature=0.7,top_p=0.9"),
        (["--tasks", "bbh", "--thinking", "on"], "no benchmark is left", "--thinking off"),
        (["--boundary", "new"], "boundary is 'new'", "auto or text"),
        (["--gen-kwargs", "max_gen_toks=512"], "512 positions", "max_gen_toks=128"),
    ],
)
def test_what_is_refused(model, nine, refuses, flags, what, fix):
    base = ["--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa", "--use-cpu"]
    lines = refuses("eval", model, *base, *flags)
    assert what in lines[0]
    assert fix in lines[2]


def test_a_temperature_changes_the_answers(model, nine, nrt, tmp_path):
    answers = []
    for flags in ("max_gen_toks=12", "max_gen_toks=12,temperature=3.0"):
        out = tmp_path / "answers.jsonl"
        code, text, err = nrt(
            *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa,gsm8k"),
            *("--thinking", "plain", "--limit", "2", "--use-cpu", "--gen-kwargs", flags),
            *("--out", out, "--json"),
        )
        assert code == 0, err
        lines = out.read_text(encoding="utf-8").splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    assert json.loads(text.splitlines()[-1])["gen_kwargs"]["do_sample"] is True
    assert answers[0] != answers[1]


def test_flags_of_the_suite_need_it(model, refuses):
    assert "--limit without --suite" in refuses("eval", model, "--data", "x", "--limit", "2")[0]
    assert "--run-code without" in refuses("eval", model, "--data", "x", "--run-code")[0]


def test_without_lm_eval(model, nine, refuses, monkeypatch):
    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    lines = refuses("eval", model, "--suite", "nrt9", "--data-dir", nine)
    assert "lm_eval is not installed" in lines[0]
    assert lines[2] == "  fix: pip install 'native-reasoning[eval]'"


def test_a_path_that_cannot_be_written_is_known_at_once(model, nine, nrt, tmp_path):
    out = tmp_path / "absent" / "answers.jsonl"
    code, text, err = nrt("eval", model, "--suite", "nrt9", "--data-dir", nine, "--out", out)
    assert (code, text) == (2, "")
    assert "answers.jsonl" in err.splitlines()[-3]
    assert "loading" not in err


def test_a_hub_that_cannot_be_reached(model, refuses, monkeypatch):
    def load(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr("datasets.load_dataset", load)
    lines = refuses("eval", model, "--suite", "nrt9", "--tasks", "gsm8k", "--use-cpu")
    assert "openai/gsm8k" in lines[0]
    assert "--data-dir" in lines[2]
