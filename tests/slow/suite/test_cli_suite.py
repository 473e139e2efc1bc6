"""``nrt eval --suite``."""

import json

import nltk
import pytest

from native_reasoning.evaluation import benchmarks
from suite_data import write_all, write_punkt

LENGTHS = ["--use-cpu", "--max-trace-length", "4", "--gen-kwargs", "max_gen_toks=6"]


@pytest.fixture(scope="module")
def nine(tmp_path_factory):
    return str(write_all(tmp_path_factory.mktemp("nine")))


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """nltk has its file, and lm-eval does not look at the machine, which takes seconds."""
    monkeypatch.setattr(nltk.data, "path", [str(write_punkt(tmp_path / "nltk"))])
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")


def test_a_suite_off_and_on(model, nine, nrt, tmp_path):
    out = tmp_path / "answers.jsonl"
    code, text, err = nrt(
        *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--limit", "2", "--json"),
        *("--out", out, "--batch-size", "2", *LENGTHS),
    )
    assert code == 0, err
    assert "humaneval is left out" in err
    assert "bbh is left out: its filter looks for 'the answer is'" in err
    assert "asking, thinking off" in err
    result = json.loads(text.splitlines()[-1])
    rows = {row["benchmark"]: row for row in result["benchmarks"]}
    assert list(rows) == ["mmlu", "drop", "popqa", "truthfulqa", "gsm8k", "math", "ifeval"]
    assert result["boundary"] == "text"
    assert set(result["versions"]) >= {"lm-eval", "torch", "native-reasoning"}
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
    assert len(items) == 7 * 2 * 2
    assert all((i["trace"] is None) == (i["mode"] == "off") for i in items)
    assert {i["subset"] for i in items if i["benchmark"] == "mmlu"} == {"anatomy", "astronomy"}


def test_a_table_with_code_in_a_chat_template(model, nine, nrt, monkeypatch):
    monkeypatch.setattr("native_reasoning.evaluation.harness.walls", lambda: ())
    monkeypatch.setattr("native_reasoning.evaluation.marks.passes", lambda text: True)
    base = ("eval", model, "--suite=nrt9", "--data-dir", nine, "--limit", "1", "--num-fewshot", "1")
    code, text, err = nrt(
        *(*base, "--tasks", "humaneval,mmlu", "--run-code", "--apply-chat-template", *LENGTHS)
    )
    assert code == 0, err
    lines = [line.split() for line in text.splitlines()]
    titles = ["thinking", "off", "thinking", "on", "gain", "trace", "tokens", "closed"]
    assert lines[0][3:] == titles
    assert [line[:3] for line in lines[1:3]] == [["mmlu", "acc", "1"], ["humaneval", "pass@1", "1"]]
    assert lines[2][3:6] == ["100.0", "100.0", "0.0"]
    assert lines[3][0] == "mean"
    code, text, err = nrt(*(*base, "--tasks", "bbh", "--thinking", "off", *LENGTHS))
    assert code == 0, err
    assert text.splitlines()[0].split() == ["benchmark", "metric", "n", "thinking", "off"]


@pytest.mark.parametrize(
    ("flags", "what", "fix"),
    [
        (["--suite", "nrt8"], "'nrt8' (did you mean 'nrt9'?)", "nrt9"),
        (["--tasks", "gsm9k"], "'gsm9k' (did you mean 'gsm8k'?)", "one of: bbh mmlu"),
        (["--thinking", "onn"], "--thinking does not know 'onn'", "one of: off on both"),
        (["--tasks", "humaneval"], "no benchmark is left", "docs/benchmarks.md"),
        (["--data", "x.jsonl"], "--data with --suite", "leave --data out"),
        (["--data-dir", "/nowhere"], "no benchmark is left", "docs/benchmarks.md"),
        (["--limit", "x"], "argument --limit: invalid int value: 'x'", "--help"),
        (["--tasks", "bbh", "--thinking", "on"], "No tasks specified", "change the setting"),
        (["--boundary", "new"], "boundary is 'new'", "auto or text"),
    ],
)
def test_what_is_refused(model, nine, refuses, flags, what, fix):
    base = ["--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa", "--use-cpu"]
    lines = refuses("eval", model, *base, *flags)
    assert what in lines[0]
    assert fix in lines[2]


@pytest.mark.parametrize(("text", "what"), [("foo=1", "'foo'"), ("max_gen_toks=512", "(512)")])
def test_what_lm_eval_refuses_is_told_beside_its_bar(model, nine, nrt, text, what):
    code, out, err = nrt(
        *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa", "--use-cpu"),
        *("--gen-kwargs", text),
    )
    assert (code, out) == (2, "")
    error = err[err.index("error: ") :].splitlines()
    assert what in error[0]
    assert error[2].startswith("  fix: change the setting")


def test_a_temperature_changes_the_answers(model, nine, nrt, tmp_path):
    answers = []
    for flags in ("max_gen_toks=12", "max_gen_toks=12,temperature=3.0,do_sample=true"):
        out = tmp_path / "answers.jsonl"
        code, _, err = nrt(
            *("eval", model, "--suite", "nrt9", "--data-dir", nine, "--tasks", "popqa,gsm8k"),
            *("--thinking", "off", "--limit", "2", "--use-cpu", "--gen-kwargs", flags),
            *("--out", out, "--json"),
        )
        assert code == 0, err
        lines = out.read_text(encoding="utf-8").splitlines()
        answers.append([json.loads(line)["answer"] for line in lines])
    assert answers[0] != answers[1]


def test_flags_of_the_suite_need_it(model, refuses):
    assert "--limit without --suite" in refuses("eval", model, "--data", "x", "--limit", "2")[0]
    assert "--run-code without" in refuses("eval", model, "--data", "x", "--run-code")[0]


def test_without_lm_eval(model, nine, refuses, monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
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
