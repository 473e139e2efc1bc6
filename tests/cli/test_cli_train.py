"""``nrt train``: the run folder, the table, dry runs, recipes, signals and resuming."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from cli_helpers import SMALL, start, sums, write_rows
from native_reasoning.records.folder import read_config, read_held_out, read_metrics


def test_train_prints_a_table_and_leaves_a_run(model, data, held_out, tmp_path, nrt):
    out = tmp_path / "run"
    code, text, err = nrt(
        "train", "--model", model, "--data", data, "--eval-data", held_out, "--out", out, *SMALL
    )
    assert code == 0
    lines = text.splitlines()
    assert lines[0].split() == ["2", "held-out", "questions", "before", "after"]
    assert any(line.startswith("accuracy ") and " to " in line for line in lines)
    assert any(line.startswith("uplift (nats per token)") for line in lines)
    assert lines[-2:] == [f"run    {out}", f"model  {out / 'final'}"]
    assert "qa.jsonl: 9 of 9 rows kept (question -> answer)" in err
    assert "step 2/2  reward " in err
    assert "evaluation at step 0: accuracy " in err
    assert "Loading weights" not in err
    assert "Writing model shards" not in err
    assert {"final", "checkpoint-2", "config.yaml", "metrics.jsonl"} <= {
        p.name for p in out.iterdir()
    }
    config = read_config(out)["config"]
    assert (config["model"], config["data"], config["eval_data"]) == (model, data, held_out)


def test_json_is_the_last_line_of_stdout(model, data, held_out, tmp_path, nrt):
    out = tmp_path / "run"
    code, text, _ = nrt(
        "train", f"--model={model}", f"--data={data}", f"--eval_data={held_out}", f"--out={out}",
        *SMALL, "--json",
    )  # fmt: skip
    result = json.loads(text.splitlines()[-1])
    assert code == 0
    assert len(text.splitlines()) == 1
    assert (result["run"], result["steps"]) == (str(out), 2)
    for evaluation in (result["before"], result["after"]):
        assert evaluation["accuracy_low"] <= evaluation["accuracy"] <= evaluation["accuracy_high"]
    logged = [row for row in read_metrics(out) if "eval_uplift" in row]
    assert [row["step"] for row in logged] == [0, 2]
    assert logged[1]["eval_uplift"] == result["after"]["uplift"]
    assert read_held_out(out)["step"].to_pylist() == [0, 0, 2, 2]


def test_the_last_evaluation_is_made_once(model, data, held_out, tmp_path, nrt):
    out = tmp_path / "run"

    def after(*flags: str) -> tuple[dict, list[int]]:
        code, text, err = nrt("train", "--out", out, *flags, "--json")
        assert code == 0, err
        evaluated = [row["step"] for row in read_metrics(out) if "eval_uplift" in row]
        assert err.count("evaluating 2 questions, answers up to 16 tokens") == err.count(" at step")
        return json.loads(text)["after"], evaluated

    command = ["--model", model, "--data", data, "--eval-data", held_out, *SMALL]
    found, steps = after(*command, "--eval-strategy", "steps", "--eval-steps", "1")
    assert steps == [0, 1, 2]
    lines = [row for row in read_metrics(out) if "eval_uplift" in row]
    assert found == {k.removeprefix("eval_"): v for k, v in lines[-1].items() if "eval_" in k}
    again, steps = after("--resume")  # a finished run is asked once more
    assert (again, steps) == (found, [0, 1, 2, 2])
    other = write_rows(tmp_path / "other.jsonl", sums(7, 8))
    changed, steps = after("--resume", "--eval-data", other)
    assert steps == [0, 1, 2, 2, 2]
    assert changed["uplift"] != found["uplift"]


def test_after_the_best_model_was_loaded_its_own_evaluation_counts(
    model, data, held_out, tmp_path, nrt
):
    out = tmp_path / "run"
    best = ["--load-best-model-at-end", "--metric-for-best-model", "eval_answer_logp"]
    best += ["--greater-is-better", "false"]  # learning makes answers likelier: the first one
    code, text, err = nrt(
        "train", "--model", model, "--data", data, "--eval-data", held_out, "--out", out, *SMALL,
        *best, "--eval-strategy", "steps", "--eval-steps", "1", "--save-steps", "1",
        "--learning-rate", "1e-2", "--warmup-steps", "0", "--json",
    )  # fmt: skip
    assert code == 0, err
    lines = [row for row in read_metrics(out) if "eval_uplift" in row]
    assert [row["step"] for row in lines] == [0, 1, 2]
    assert lines[1]["eval_answer_logp"] != lines[2]["eval_answer_logp"]
    assert json.loads(text)["after"]["answer_logp"] == lines[1]["eval_answer_logp"]


def test_without_held_out_questions_the_table_says_so(model, data, tmp_path, nrt):
    out = tmp_path / "run"
    code, text, _ = nrt("train", "--model", model, "--data", data, "--out", out, *SMALL)
    assert code == 0
    assert "no held-out questions: --eval-data F" in text


def test_dry_run_writes_nothing(model, data, tmp_path, nrt, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, text, _ = nrt("train", "--model", model, "--data", data, *SMALL, "--dry-run")
    assert code == 0
    assert sorted(tmp_path.rglob("*")) == before
    told = {
        name.strip(): value.strip()
        for name, _, value in (line.partition("  ") for line in text.splitlines())
    }
    assert (told["rows"], told["eval rows"]) == ("9", "0")
    assert told["steps"] == "2"
    assert told["think"] == "'<think>' '</think>'"
    assert told["run folder"] == "runs/tiny"
    assert "  | What is 0 + 0?<|im_end|>" in text
    code, text, _ = nrt("train", "--model", model, "--data", data, *SMALL, "--dry-run", "--json")
    outlook = json.loads(text)
    assert outlook["first_prompt"]["prompt"].endswith("<think>")
    assert outlook["memory"] > 16 * outlook["parameters"]
    assert outlook["seconds_per_step"] > 0
    assert outlook["steps"] == 2


def test_recipe_then_flags_and_a_folder_of_its_own(model, data, tmp_path, nrt, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = {"model": model, "data": data, "num-generations": 2, "max_steps": 3, "use_cpu": True}
    recipe |= {
        "max_trace_length": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": "1e-4",
    }
    Path("first.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("first", "first-2"):
        assert nrt("train", "first.yaml", "--max_steps=1", "--logging-steps", "1")[0] == 0
        config = read_config(Path("runs") / name)["config"]
        assert (config["max_steps"], config["learning_rate"]) == (1, 1e-4)
        assert config["output_dir"] == f"runs/{name}"


def test_warnings_before_training(model, tmp_path, nrt):
    rows = [{"Body": "A long story of apples.", **row} for row in sums(0, 2)]
    data = write_rows(tmp_path / "qa.jsonl", rows)
    command = ["train", "--model", model, "--data", data, "--eval-data", data, *SMALL, "--dry-run"]
    _, _, err = nrt(*command)
    assert "warning: Body is not used" in err
    assert r"--prompt-template '{Body}\n{question}'" in err
    assert "6 of 6 held-out questions are training questions too" in err


def test_train_warns_of_the_answers_in_its_first_rows(model, tmp_path, nrt, monkeypatch):
    monkeypatch.setattr("native_reasoning.cli.train._FIRST_ROWS", 4)
    rows = [{**row, "answer": f"so #### {row['answer']}"} for row in sums(0, 2)]
    data = write_rows(tmp_path / "qa.jsonl", rows)
    command = ["train", "--model", model, "--data", data, *SMALL, "--dry-run"]
    _, _, err = nrt(*command)
    assert "\nwarning: in the first 4 rows: most answers hold a worked solution" in err
    assert "worked solution" not in nrt(*command, "--answer-regex", r"####\s*(.*)")[2]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_resume_goes_on(number, code, model, data, tmp_path, nrt, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--model", model, "--data", data, "--out", "runs/x", *SMALL]
    process = start(*command, "--max-steps", "100000", "--json", cwd=tmp_path)
    for line in process.stderr:
        if line.startswith("step 3/"):
            break
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == code, err
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["stopped_by"] == signal.Signals(number).name
    assert "go on with: nrt train --out runs/x --resume" in err
    assert not Path("runs/x/final").exists()

    steps = stopped["steps"] + 2
    resume = ["train", "--out", "runs/x", "--resume", "--max-steps", str(steps), "--json"]
    code, text, err = nrt(*resume)
    assert code == 0
    assert json.loads(text)["steps"] == steps
    assert "going on with runs/x" in err
    rewards = [row["step"] for row in read_metrics("runs/x") if "reward" in row]
    assert rewards == list(range(1, steps + 1))


def test_ctrl_c_before_training_leaves_nothing(data, tmp_path):
    process = start("train", "--model", "nobody/nothing", "--data", data, cwd=tmp_path)
    assert "rows kept" in process.stderr.readline()  # it runs: the next thing is the model
    process.send_signal(signal.SIGINT)
    process.communicate()
    # 2: it had already found that there is no such model; -2: and was on its way out
    assert process.returncode in (2, 130, -signal.SIGINT)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/*.yaml")))
def test_committed_recipes_are_settings_that_work(recipe):
    from native_reasoning.cli.inputs import split_source
    from native_reasoning.config.recipe import make_config, read_recipe

    settings = read_recipe(recipe)
    assert settings.pop("model")
    assert split_source(settings.pop("data"))[1] in ("train", None)
    assert split_source(settings.pop("eval_data", "[]"))[1] in ("test", None)
    settings.pop("bf16", None)  # a CPU may lack it
    config = make_config(settings, output_dir="unused", use_cpu=True)
    assert config.preset == "nrt-ws"
    text = recipe.read_text()
    assert all(word in text for word in ("Paper:", "Hardware:", "Minutes:", "Expected:"))


def test_functions_of_the_users_own_come_from_the_working_folder(
    model, data, tmp_path, nrt, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_cli.py").write_text(
        "import torch\n"
        "from native_reasoning import Signal\n"
        "def first_only(scores):\n"
        "    advantages = torch.zeros(len(scores.answer)); advantages[0] = 1.0\n"
        "    return Signal(scores.answer.sum(-1), scores.baseline.sum(), advantages,\n"
        "                  torch.ones_like(scores.answer))\n"
        "def short(completions, **columns):\n"
        "    return [-len(text) / 10 for text in completions]\n"
    )
    out, small = tmp_path / "run", ("--model", model, "--data", data, *SMALL)
    code, _, _ = nrt("train", *small, "--out", out, "--objective-func", "mine_cli:first_only")
    assert code == 0
    assert read_config(out)["config"]["objective_func"] == "mine_cli:first_only"
    with monkeypatch.context() as elsewhere:  # what judged the traces is not needed to evaluate
        elsewhere.chdir(tmp_path.parent)
        code, _, err = nrt("eval", out, "--data", data, "--eval-samples", "2")
        assert code == 0, err
    out = tmp_path / "second"
    code, _, _ = nrt(
        "train", *small, "--out", out, "--reward-funcs", "mine_cli:short", "--reward-weights", "0.5"
    )
    assert code == 0
    assert read_config(out)["config"]["reward_funcs"] == ["mine_cli:short"]
    assert all(line["added_reward"] < 0 for line in read_metrics(out) if "added_reward" in line)
    code, _, err = nrt(
        "train", *small, "--out", tmp_path / "no", "--objective-func", "mine_cli:none"
    )
    assert code == 2
    assert err.splitlines()[-3:] == [
        "error: mine_cli has no function 'none'",
        "  why: mine_cli:none is asked for",
        "  fix: define none at the top level of mine_cli",
    ]
    assert not (tmp_path / "no").exists()


def test_an_adapter_is_trained_resumed_and_asked_before_it_is_merged(
    model, data, held_out, tmp_path, nrt
):
    pytest.importorskip("peft")
    out = tmp_path / "run"
    code, _, err = nrt(
        "train", "--model", model, "--data", data, "--out", out, *SMALL, "--use-peft", "--lora-r",
        "4", "--lora-target-modules", "q_proj,v_proj",
    )  # fmt: skip
    assert code == 0, err
    assert (out / "checkpoint-2" / "adapter_model.safetensors").is_file()
    merged = (out / "final" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "final")
    code, text, err = nrt("eval", out, "--data", held_out)
    assert code == 0, err
    assert f"model  {out / 'checkpoint-2'}" in text
    code, _, err = nrt("train", "--out", out, "--resume")
    assert code == 0, err
    assert (out / "final" / "model.safetensors").read_bytes() == merged
