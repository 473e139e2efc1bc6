"""Objectives and reward functions of the user's own: found, checked, called, and resumed."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from groups_of_scores import full_scores
from lab_run import ROWS, lab_trainer
from native_reasoning.custom import RewardFunctions, check_signal, load_callable, name_of
from native_reasoning.errors import ConfigError, RunError
from native_reasoning.objective import Objective
from native_reasoning.records import read_config, read_metrics, read_traces
from native_reasoning.types import Signal


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder whose modules are forgotten afterwards."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before = set(sys.modules)
    yield here
    for name in set(sys.modules) - before:
        if "mine" in name:
            del sys.modules[name]


# -- Finding ---------------------------------------------------------------------------------------


def test_a_function_of_the_working_folder_is_found_and_the_path_is_left_alone(folder):
    (folder / "mine_a.py").write_text("def one(): return 1\n")
    package = folder / "mine_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("def two(): return 2\n")
    path = list(sys.path)
    assert load_callable("mine_a:one")() == 1
    assert load_callable("mine_package.inner:two")() == 2
    assert sys.path == path


@pytest.mark.parametrize("link", [False, True])
def test_a_module_from_elsewhere_is_refused_before_it_runs(folder, tmp_path, monkeypatch, link):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = tmp_path / "ran"
    (elsewhere / "mine_b.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef f(): return 3\n"
    )
    if link:
        (folder / "mine_b.py").symlink_to(elsewhere / "mine_b.py")
    else:
        monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(ConfigError, match="outside the working folder"):
        load_callable("mine_b:f")
    assert not ran.exists()
    assert "mine_b" not in sys.modules
    assert load_callable("mine_b:f", trust_imports=True)() == 3
    with pytest.raises(ConfigError, match="outside the working folder"):
        load_callable("mine_b:f")  # now that it is loaded, too


def test_a_package_without_init_lies_where_all_its_parts_lie(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    for place, name in ((folder, "one"), (elsewhere, "two")):
        (place / "mine_spread").mkdir(parents=True)
        (place / "mine_spread" / f"{name}.py").write_text("def f(): return 4\n")
    assert load_callable("mine_spread.one:f")() == 4
    for name in [name for name in sys.modules if name.startswith("mine_spread")]:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(ConfigError, match="outside the working folder"):
        load_callable("mine_spread.two:f")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no_colon", "does not name a function"),
        (":f", "does not name a function"),
        ("mine_c:", "does not name a function"),
        ("mine_nowhere:f", "mine_nowhere cannot be imported"),
        ("mine_c:g", "mine_c has no function 'g'"),
        ("mine_c:NUMBER", "mine_c has no function 'NUMBER'"),
        ("mine_d:f", "mine_d cannot be imported"),
        ("os:system", "outside the working folder"),
        ("json:loads", "outside the working folder"),
        ("sys:exit", "outside the working folder"),
        ("__main__:f", "__main__ cannot be imported"),
    ],
)
def test_names_that_lead_nowhere(name, what, folder):
    (folder / "mine_c.py").write_text("NUMBER = 1\ndef f(): pass\n")
    (folder / "mine_d.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(ConfigError) as caught:
        load_callable(name)
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix


# -- Signals ---------------------------------------------------------------------------------------

SCORES = full_scores(k=3, t=2, length=2)


def signal(**parts):
    width = SCORES.trace.shape[1]
    given = {
        "rewards": torch.zeros(3),
        "baseline_reward": torch.zeros(()),
        "advantages": torch.ones(3),
        "answer_weights": torch.ones(3, 2),
        "trace_weights": torch.ones(3, width) * SCORES.trace_mask,
        **parts,
    }
    return Signal(**given)


def test_a_signal_that_fits_passes():
    made = signal()
    assert check_signal(made, SCORES, "mine") is made
    check_signal(signal(trace_weights=None), SCORES, "mine")


def broken(shape, place, value):
    tensor = torch.zeros(shape)
    tensor[place] = value
    return tensor


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"advantages": torch.ones(4)}, "advantages, axis trace: 4 entries, not 3"),
        ({"rewards": torch.ones(3, 1)}, "rewards has the shape (3, 1), its axes are: trace 3"),
        ({"baseline_reward": torch.ones(1)}, "baseline_reward has the shape (1,), its axes are: n"),
        ({"answer_weights": torch.ones(3, 3)}, "answer_weights, axis answer: 3 entries, not 2"),
        ({"trace_weights": torch.ones(3, 1)}, "trace_weights, axis token: 1 entries, not 6"),
        ({"advantages": [1.0, 2.0, 3.0]}, "advantages is list, not a tensor"),
        ({"advantages": broken(3, 1, torch.nan)}, "advantages is nan at trace 1"),
        ({"answer_weights": broken((3, 2), (2, 1), torch.inf)}, "is inf at trace 2, answer 1"),
        ({"baseline_reward": torch.tensor(torch.nan)}, "baseline_reward is nan at its only entry"),
        ({"trace_weights": torch.ones(3, 6)}, "axis token, trace 0: token 4 was not sampled"),
    ],
)
def test_a_signal_that_does_not_fit_names_objective_axis_and_row(parts, what):
    with pytest.raises(RunError) as caught:
        check_signal(signal(**parts), SCORES, "mine")
    assert caught.value.what.startswith("objective mine: ")
    assert what in caught.value.what


def test_something_else_than_a_signal_is_refused():
    with pytest.raises(RunError, match="returned dict, not a Signal"):
        check_signal({}, SCORES, "mine")
    assert name_of(Objective()) == "Objective"


def test_weights_per_token_weigh_the_policy_gradient(tmp_path):
    """Weight 2 on the first token of each trace alone: the loss is −2 log π of these tokens."""
    seen = []

    def first_token(scores):
        weights = torch.zeros_like(scores.trace)
        weights[:, 0] = 2.0 * scores.trace_mask[:, 0]
        seen.append((2 * scores.trace[:, 0]).sum().item())
        zero = torch.zeros(len(scores.answer))
        return Signal(zero, zero.sum(), zero, torch.zeros_like(scores.answer), weights)

    trainer = lab_trainer(
        tmp_path / "run", objective_fn=first_token, max_steps=1, format_loss_coef=0
    )
    trainer.train()
    (metrics,) = read_metrics(tmp_path / "run")
    assert metrics["loss_trace"] == pytest.approx(-sum(seen) / 12, rel=1e-5)
    assert metrics["grad_norm"] > 0
    assert read_config(tmp_path / "run")["config"]["objective"] == "first_token"


def test_a_wrong_signal_stops_the_run_with_its_name(tmp_path):
    def too_few(scores):
        one = torch.zeros(1)
        return Signal(one, one.sum(), one, torch.zeros_like(scores.answer))

    with pytest.raises(RunError, match="objective too_few: rewards, axis trace: 1 entries, not 4"):
        lab_trainer(tmp_path / "run", objective_fn=too_few).train()


def test_a_subclass_with_a_call_of_its_own_is_asked_group_by_group(tmp_path):
    calls = []

    class Mine(Objective):
        def __call__(self, scores):
            calls.append(scores)
            return super().__call__(scores)

    lab_trainer(tmp_path / "run", objective_fn=Mine(), max_steps=1).train()
    assert len(calls) == 3
    assert not calls[0].answer.requires_grad


# -- Reward functions ------------------------------------------------------------------------------


def lengths(completions, **columns):
    return [float(len(text)) for text in completions]


async def later(completions, **columns):
    return [1.0 for _ in completions]


def test_rewards_are_weighed_and_none_counts_as_nothing():
    def some(completions, **columns):
        return [None, 3]

    rewards = RewardFunctions([lengths, some, later], [1.0, 0.5, 10.0])
    assert rewards(2, completions=["ab", "abc"]).tolist() == [12.0, 3 + 1.5 + 10]
    assert RewardFunctions([lengths])(1, completions=["ab"]).tolist() == [2.0]
    assert rewards
    assert not RewardFunctions([])
    with pytest.raises(ConfigError, match="1 reward_weights for 2 reward_funcs"):
        RewardFunctions([lengths, later], [1.0])


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda completions, **columns: [1.0], "returned 1 rewards for 2 traces"),
        (lambda completions, **columns: [1.0, float("nan")], "returned nan for completion 1"),
        (lambda solution, **columns: [1.0, 1.0], "failed: "),
    ],
)
def test_reward_functions_that_do_not_answer(function, what):
    function.__name__ = "mine"
    with pytest.raises(RunError) as caught:
        RewardFunctions([function])(2, completions=["a", "b"], answer=["c", "d"])
    assert f"reward function mine {what}" in caught.value.what
    assert "completions, answer" in caught.value.fix


SEEN = []


def nosy(prompts, completions, completion_ids, answer, level, trainer_state, **columns):
    SEEN.append((prompts, completions, completion_ids, answer, level, trainer_state.global_step))
    return [float("7" in text) for text in completions]


LEVELS = [{**row, "level": i} for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("tokens", ["trace_tag", "trace_tag_answer"])
def test_they_get_what_trl_gives_them(tokens, tmp_path):
    SEEN.clear()
    trainer = lab_trainer(
        tmp_path / "run", rows=LEVELS, funcs=nosy, policy_tokens=tokens, reward_weights=[2.0]
    )
    trainer.train()
    assert [step for *_, step in SEEN] == [0, 1]
    prompts, completions, ids, answers, levels, _ = SEEN[0]
    assert len(prompts) == len(completions) == len(ids) == 12
    by_question = {row["question"]: row for row in LEVELS}
    assert [by_question[p]["answer"] for p in prompts] == answers
    assert [by_question[p]["level"] for p in prompts] == levels
    rows = [r for r in read_traces(tmp_path / "run").to_pylist() if r["step"] == 1]
    for text, row, tokens_of in zip(completions, rows, ids, strict=True):
        assert text.startswith(row["trace"].strip())
        assert ("</think>" in text) == row["closed"]
        assert text.endswith(row["sampled_answer"].strip())
        assert (len(tokens_of) > row["length"]) == bool(row["sampled_answer"])
    added = [2.0 * ("7" in text) for text in completions]
    assert read_metrics(tmp_path / "run")[0]["added_reward"] == pytest.approx(sum(added) / 12)
    assert read_config(tmp_path / "run")["config"]["reward_funcs"] == ["nosy"]


def test_rewards_of_ones_own_alone_are_grpo(tmp_path):
    SEEN.clear()
    settings = {"reward": "none", "clip": "none", "answer_weight": "none", "std_eps": 1e-4}
    lab_trainer(tmp_path / "run", rows=LEVELS, funcs=[nosy], max_steps=1, **settings).train()
    rows = read_traces(tmp_path / "run").to_pylist()
    for row_id in {r["row_id"] for r in rows}:
        group = [r for r in rows if r["row_id"] == row_id]
        r = torch.tensor([float("7" in one["trace"]) for one in group])
        expected = (r - r.mean()) / (r.std() + 1e-4)
        got = torch.tensor([one["advantage"] for one in group])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert "reward" in read_metrics(tmp_path / "run")[0]


def test_conversations_are_lists_of_messages(tmp_path):
    SEEN.clear()
    turns = [
        {"role": "user", "content": "add 1 2 3 4 5"},
        {"role": "assistant", "content": "the last digit of their sum is 5 ."},
        {"role": "user", "content": "add 1 1 1 1 1"},
    ]
    rows = [{"prompt": turns, "answer": "5", "level": 0}, *LEVELS[:2]]
    lab_trainer(tmp_path / "run", rows=rows, funcs=nosy_chat, max_steps=1).train()
    prompts, completions = SEEN[0]
    assert all(isinstance(prompt, list) and prompt[-1]["role"] == "user" for prompt in prompts)
    assert turns in prompts
    assert all([m["role"] for m in completion] == ["assistant"] for completion in completions)


def nosy_chat(prompts, completions, **columns):
    SEEN.append((prompts, completions))
    return [0.0] * len(prompts)


def test_a_run_with_reward_functions_by_name_resumes_bit_for_bit(folder):
    (folder / "mine_rewards.py").write_text(
        "def short(completions, **columns): return [-len(c) / 20 for c in completions]\n"
    )
    settings = {
        "reward_funcs": ["mine_rewards:short"],
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": None,
    }
    lab_trainer(folder / "whole", **settings).train()
    lab_trainer(folder / "run", **{**settings, "max_steps": 2}).train()
    lab_trainer(folder / "run", **settings).train(resume_from_checkpoint=True)
    one, two = (
        load_file(folder / f / "checkpoint-4" / "model.safetensors") for f in ("whole", "run")
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert read_metrics(folder / "whole") == read_metrics(folder / "run")


def test_own_rewards_need_something_to_tell_apart(tmp_path):
    with pytest.raises(ConfigError, match="which samples nothing"):
        lab_trainer(tmp_path / "run", preset="sft", funcs=lengths)
    with pytest.raises(ConfigError, match="num_generations is 1"):
        lab_trainer(
            tmp_path / "run", preset="nrt-ws", reward="none", num_generations=1, funcs=[later]
        )
