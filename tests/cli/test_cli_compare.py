"""``nrt compare`` before anything is trained: what is asked for, and what is refused."""

import json
from pathlib import Path

import pytest
import yaml

from cli_helpers import SMALL
from native_reasoning.cli.compare import read_comparison
from native_reasoning.cli.flags import parse
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.errors import ConfigError
from native_reasoning.config.recipe import make_config, read_arms


@pytest.fixture
def asked(model, data, held_out, tmp_path):
    """The arguments of a small comparison."""
    given = ["--model", model, "--data", data, "--eval-data", held_out, *SMALL]
    return ["compare", *given, "--out", str(tmp_path / "compared")]


@pytest.fixture
def begun(tmp_path, model, data, held_out):
    """A folder in which a comparison was begun, and the arguments that go on with it."""
    folder = tmp_path / "begun"
    folder.mkdir()
    plan = {"model": model, "data": data, "eval_data": held_out, "learning_rate": 1e-4}
    plan |= {"num_generations": 2, "max_trace_length": 6, "max_answer_length": 24}
    plan |= {"use_cpu": True, "max_steps": 2, "presets": "sft,nrt-ws", "seeds": 2}
    (folder / "compare.yaml").write_text(yaml.safe_dump(plan))
    return folder


def test_arms_with_settings_of_their_own():
    arms = read_arms("sft, nrt-ws,verifree:learning-rate=1e-6:objective.beta=0.1")
    assert [arm.label for arm in arms[:2]] == ["sft", "nrt-ws"]
    assert arms[2].preset == "verifree"
    assert arms[2].settings == {"learning_rate": "1e-6", "objective.beta": "0.1"}
    assert arms[2].folder == "verifree_learning-rate=1e-6_objective.beta=0.1"
    (own,) = read_arms("nrt-ws:reward_funcs=my_module:fn:max_steps=5")
    assert own.settings == {"reward_funcs": "my_module:fn", "max_steps": "5"}


@pytest.mark.parametrize(
    ("presets", "what"),
    [
        ("sft,nrt-w", "did you mean 'nrt-ws'"),
        ("sft,sft", "stands twice"),
        ("sft:1e-6", "'1e-6' is no setting"),
        (" , ", "no preset was given"),
    ],
)
def test_what_is_no_arm_is_refused(presets, what):
    with pytest.raises(ConfigError) as caught:
        read_arms(presets)
    assert what in f"{caught.value.what} {caught.value.why}"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--presets", "sft,nrt-w"], "unknown preset 'nrt-w' (did you mean 'nrt-ws'?)"),
        (["--presets", "sft:learning_rat=1"], "unknown setting 'learning_rat'"),
        (["--presets", "sft,nrt-ws:objective.clip=no"], "objective.clip is 'no'"),
        (["--presets", "sft", "--seeds", "-1"], "--seeds -1"),
        (["--presets", "sft", "--preset", "sft"], "--preset with nrt compare"),
        ([], "no presets was given"),
        (["--presets", "sft", "--load-best-model-at-end"], "--load-best-model-at-end with"),
    ],
)
def test_mistakes_are_told_in_three_lines_before_anything_is_written(
    arguments, what, asked, refuses, tmp_path
):
    assert refuses(*asked, *arguments)[0].startswith(f"error: {what}")
    assert not (tmp_path / "compared").exists()


def test_a_folder_that_holds_something_else_is_refused(asked, begun, refuses, tmp_path):
    first = refuses("compare", "--out", begun, "--learning-rate", "2e-4")
    assert first[0] == f"error: {begun} holds another comparison: learning_rate 0.0001 -> 0.0002"
    assert f"--out {begun}-2" in first[2]
    run = tmp_path / "compared"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "already holds a run" in refuses(*asked, "--presets", "sft")[0]


RECIPES = sorted(Path(__file__).parents[2].glob("benchmarks/*/*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_comparisons_of_benchmarks_can_be_made(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    files = ["--model", "M", "--data", "F", "--eval-data", "G"]
    parsed = parse(VERBS["compare"], [str(path), *files])
    runs = read_comparison(parsed).runs()
    for run in runs:
        assert make_config(run.command.settings, output_dir=run.command.out).max_steps


def test_a_dry_run_says_which_runs_there_are_and_writes_nothing(begun, nrt):
    before = sorted(begun.rglob("*"))
    more = ["--presets", "permuted", "--seeds", "3", "--max-tokens-per-forward", "99"]
    code, out, err = nrt("compare", "--out", begun, *more, "--dry-run", "--json")
    assert code == 0, err
    told = json.loads(out)
    arms = ("base", "sft", "nrt-ws", "permuted")
    assert told["runs"] == [f"{arm}-{seed}" for seed in (42, 43, 44) for arm in arms]
    assert told["steps"] == 2
    assert told["seconds"] == pytest.approx(told["seconds_per_step"] * 2 * 9)
    assert sorted(begun.rglob("*")) == before
    more = ["--presets", "permuted:max_steps=7"]
    code, out, err = nrt("compare", "--out", begun, *more, "--dry-run")
    assert "nrt-ws-43                2 steps" in out
    assert "permuted_max_steps=7-43  7 steps   max_steps 7" in out
    assert out.rstrip().endswith("dry run: nothing was written")
