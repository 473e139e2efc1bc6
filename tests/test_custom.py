"""Objectives and reward functions of the user's own: found, checked, called, and resumed."""

import asyncio
import math
import sys
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from groups_of_scores import full_scores
from lab_run import ROWS, lab_trainer
from native_reasoning.config.errors import ConfigError, RunError
from native_reasoning.config.recipe import make_config, read_recipe
from native_reasoning.objective.credit import Objective
from native_reasoning.objective.types import Signal
from native_reasoning.objective.verdicts import (
    RewardFunctions,
    check_signal,
    find_judging,
    load_callable,
    name_of,
)
from native_reasoning.records.folder import read_config, read_metrics, read_traces


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder whose modules, and itself on the path, are forgotten afterwards."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    before, path = set(sys.modules), list(sys.path)
    yield here
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if "mine" in name:
            del sys.modules[name]


# -- Finding ---------------------------------------------------------------------------------------


def test_a_function_of_the_working_folder_is_found_and_the_folder_ends_the_path(folder):
    """At its end it hides nothing, and the function may import from it when it is called."""
    (folder / "mine_a.py").write_text("def one(): return 1\n")
    package = folder / "mine_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(
        "def two():\n    import mine_a\n    return 1 + mine_a.one()\n"
    )
    path = list(sys.path)
    assert load_callable("mine_package.inner:two")() == 2
    assert load_callable("mine_a:one")() == 1
    assert sys.path == [*path, str(folder)]


def test_a_module_from_elsewhere_is_refused_before_it_runs(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = tmp_path / "ran"
    (elsewhere / "mine_b.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef f(): return 3\n"
    )
    monkeypatch.syspath_prepend(str(elsewhere))
    with pytest.raises(ConfigError, match="names no function of the working folder"):
        load_callable("mine_b:f")
    assert not ran.exists()
    assert "mine_b" not in sys.modules
    assert load_callable("mine_b:f", trust_imports=True)() == 3
    with pytest.raises(ConfigError, match="names no function of the working folder"):
        load_callable("mine_b:f")  # now that it is loaded, too


def test_a_module_of_the_working_folder_comes_before_an_installed_one(
    folder, tmp_path, monkeypatch
):
    for place, number in ((folder, 1), (tmp_path / "elsewhere", 2)):
        place.mkdir(exist_ok=True)
        (place / "mine_both.py").write_text(f"def f(): return {number}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert load_callable("mine_both:f")() == 1


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("no_colon", "names no function of the working folder"),
        (":f", "names no function of the working folder"),
        ("mine_c:", "names no function of the working folder"),
        ("mine_nowhere:f", "names no function of the working folder"),
        ("mine_c:g", "mine_c has no function 'g'"),
        ("mine_c:NUMBER", "mine_c has no function 'NUMBER'"),
        ("mine_d:f", "mine_d cannot be imported"),
        ("os:system", "names no function of the working folder"),
        ("json:loads", "names no function of the working folder"),
        ("sys:exit", "names no function of the working folder"),
        ("mine_package.nowhere:f", "names no function of the working folder"),
    ],
)
def test_names_that_lead_nowhere(name, what, folder):
    (folder / "mine_c.py").write_text("NUMBER = 1\ndef f(): pass\n")
    (folder / "mine_d.py").write_text("import a_module_that_is_not_there\n")
    (folder / "mine_package").mkdir()
    (folder / "mine_package" / "__init__.py").write_text("")
    path = list(sys.path)
    with pytest.raises(ConfigError) as caught:
        load_callable(name)
    assert what in caught.value.what
    assert caught.value.why
    assert caught.value.fix
    assert sys.path == path


@pytest.mark.parametrize("name", ["mine_c.py:f", "./mine_c.py:f", ".mine_c:f"])
def test_a_path_in_place_of_a_module_is_not_a_missing_file(name, folder):
    (folder / "mine_c.py").write_text("def f(): pass\n")
    with pytest.raises(ConfigError, match="names no function"):
        load_callable(name)


def test_a_module_that_fails_by_itself_says_so_and_leaves_the_path_alone(folder):
    (folder / "mine_zero.py").write_text("1 / 0\n")
    path = list(sys.path)
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero"):
        load_callable("mine_zero:f")
    assert sys.path == path


def test_what_is_given_comes_before_what_is_named(folder):
    (folder / "mine_e.py").write_text("def f(**columns): return [1.0]\ndef g(scores): pass\n")
    named = make_config(
        {
            "output_dir": "run",
            "objective_func": "mine_e:g",
            "reward_funcs": "mine_e:f",
            "use_cpu": True,
        }
    )
    found = find_judging(named)
    assert name_of(found.objective) == "g"
    assert [name_of(f) for f in found.rewards.functions] == ["f"]
    nowhere = {"objective_func": "mine_nowhere:g", "reward_funcs": "mine_nowhere:f"}
    named = make_config({"output_dir": "run", "use_cpu": True, **nowhere})
    for given, expected in ((max, (max,)), ([max, min], (max, min))):
        found = find_judging(named, len, given)
        assert (found.objective, found.rewards.functions) == (len, expected)
    found = find_judging(make_config({"output_dir": "run", "use_cpu": True}))
    assert isinstance(found.objective, Objective)
    assert not found.rewards
    with pytest.raises(ConfigError, match="mine_nowhere.* names no function"):
        find_judging(named, len)


def test_trust_imports_goes_for_both(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine_g.py").write_text("def f(*given, **columns): return [1.0]\n")
    monkeypatch.syspath_prepend(str(elsewhere))
    for name in ("objective_func", "reward_funcs"):
        settings = {"output_dir": "run", "use_cpu": True, name: "mine_g:f"}
        with pytest.raises(ConfigError, match="mine_g.* names no function") as caught:
            find_judging(make_config(settings))
        assert "trust_imports" in caught.value.fix
        found = find_judging(make_config({**settings, "trust_imports": "true"}))
        assert isinstance(found.objective, Objective) == (name == "reward_funcs")
        assert bool(found.rewards) == (name == "reward_funcs")


def test_a_recipe_names_functions_in_a_list_or_between_commas(folder):
    (folder / "mine_h.py").write_text(
        "def one(completions, **columns): return [1.0] * len(completions)\n"
        "async def two(completions, **columns): return [2.0] * len(completions)\n"
    )
    for functions, weights in (
        (["mine_h:one", "mine_h:two"], [0.5, 10]),
        ("mine_h:one, mine_h:two", "0.5,10"),
    ):
        recipe = {"output_dir": "run", "reward_funcs": functions, "reward_weights": weights}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        found = find_judging(make_config(read_recipe(folder / "recipe.yaml"), use_cpu=True))
        assert found.rewards(2, completions=["a", "b"]).tolist() == [20.5, 20.5]
    settings = {"output_dir": "run", "use_cpu": True, "reward_funcs": "mine_h:one"}
    with pytest.raises(ConfigError, match="2 reward_weights for 1 reward_funcs"):
        find_judging(make_config({**settings, "reward_weights": "1,2"}))


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
        ({"advantages": torch.ones(4)}, "advantages is (4,), not a tensor of the shape (3,)"),
        ({"rewards": torch.ones(3, 1)}, "rewards is (3, 1), not a tensor of the shape (3,)"),
        ({"baseline_reward": torch.ones(1)}, "baseline_reward is (1,), not a tensor of the sh"),
        ({"answer_weights": torch.ones(3, 3)}, "answer_weights is (3, 3), not"),
        ({"trace_weights": torch.ones(3, 1)}, "trace_weights is (3, 1), not"),
        ({"advantages": [1.0, 2.0, 3.0]}, "advantages is list, not a tensor"),
        ({"advantages": None}, "advantages is NoneType, not a tensor"),
        ({"advantages": broken(3, 1, torch.nan)}, "advantages is not finite: [0.0, nan, 0.0]"),
        ({"answer_weights": broken((3, 2), (2, 1), torch.inf)}, "answer_weights is not finite"),
        ({"baseline_reward": torch.tensor(torch.nan)}, "baseline_reward is not finite: nan"),
    ],
)
def test_a_signal_that_does_not_fit_names_objective_and_field(parts, what):
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
    assert read_config(tmp_path / "run")["config"]["objective_func"] == "first_token"


def by_answer(scores, weights):
    """An objective: GRPO on the answer's probability, with these weights per token."""
    rewards = scores.answer.sum(-1).exp()
    advantages = rewards - rewards.mean()
    return Signal(
        rewards=rewards,
        baseline_reward=scores.baseline.sum().exp(),
        advantages=advantages,
        answer_weights=torch.zeros_like(scores.answer),
        trace_weights=weights(advantages, scores),
    )


def plain(scores):
    return by_answer(scores, lambda a, s: None)


def spread_out(scores):
    return by_answer(scores, lambda a, s: a[:, None] * s.trace_mask)


def nothing(scores):
    return by_answer(scores, lambda a, s: torch.zeros_like(s.trace))


@pytest.mark.parametrize("updates", [1, 2])
def test_weights_per_token_take_the_place_of_the_traces_own(updates, tmp_path):
    """Also where they are remembered from one update of a rollout to the next."""
    settings = {"num_iterations": updates, "format_loss_coef": 0}
    found = {}
    for objective in (plain, spread_out, nothing):
        folder = tmp_path / objective.__name__
        lab_trainer(folder, objective_fn=objective, **settings).train()
        found[objective] = read_metrics(folder)
    assert all(m["loss_trace"] != 0 for m in found[plain])
    for one, other in zip(found[plain], found[spread_out], strict=True):
        assert one["loss_trace"] == pytest.approx(other["loss_trace"], rel=1e-4, abs=1e-7)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    # advantages are as before, and weigh nothing
    assert [m["loss_trace"] for m in found[nothing]] == [0, 0]
    assert [m["grad_norm"] for m in found[nothing]] == [0, 0]


def test_the_format_warm_up_has_no_weights_per_token_either(tmp_path):
    lab_trainer(tmp_path / "run", objective_fn=spread_out, format_warmup_steps=1).train()
    first, second = read_metrics(tmp_path / "run")
    assert first["loss_trace"] == 0
    assert second["loss_trace"] != 0


HALF_OF_THE_FIRST = """
import torch
from native_reasoning import Signal

def half(scores):
    advantages = torch.zeros(len(scores.answer))
    advantages[0] = 0.5
    rewards = scores.answer.sum(-1)
    return Signal(rewards, rewards.mean(), advantages, torch.zeros_like(scores.answer))
"""


def test_an_objective_by_name_trains_as_the_function_itself(folder):
    (folder / "mine_objective.py").write_text(HALF_OF_THE_FIRST)
    lab_trainer(folder / "named", objective_func="mine_objective:half").train()
    half = sys.modules["mine_objective"].half
    lab_trainer(folder / "given", objective_fn=half).train()
    lab_trainer(folder / "preset").train()
    assert read_metrics(folder / "named") == read_metrics(folder / "given")
    assert read_metrics(folder / "named") != read_metrics(folder / "preset")
    rows = read_traces(folder / "named").to_pylist()
    assert all(r["advantage"] == (0.5 if r["k"] == 0 else 0.0) for r in rows)
    names = {
        run: read_config(folder / run)["config"]["objective_func"] for run in ("named", "given")
    }
    assert names == {"named": "mine_objective:half", "given": "half"}
    assert read_config(folder / "preset")["config"]["objective_func"] is None


def test_the_run_folder_names_what_was_trained_with(folder):
    """A function that is given takes the place of one that is named, in the record too."""
    (folder / "mine_named.py").write_text(
        HALF_OF_THE_FIRST + "def zero(prompts, **columns): return [0.0] * len(prompts)\n"
    )
    lab_trainer(
        folder / "run",
        objective_func="mine_named:half",
        reward_funcs=["mine_named:zero"],
        objective_fn=plain,
        funcs=lengths,
        max_steps=1,
    ).train()
    config = read_config(folder / "run")["config"]
    assert (config["objective_func"], config["reward_funcs"]) == ("plain", ["lengths"])


def test_a_wrong_signal_stops_the_run_with_its_name(tmp_path):
    def too_few(scores):
        one = torch.zeros(1)
        return Signal(one, one.sum(), one, torch.zeros_like(scores.answer))

    with pytest.raises(RunError, match="objective too_few: rewards is .1,., not a tensor"):
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


@pytest.mark.parametrize("iterations", [1, 2])
def test_groups_that_only_fill_up_a_step_are_shown_to_no_objective(iterations, tmp_path):
    """12 rows at 5 prompts a step: the third step has two prompts and three fillers."""
    calls = []

    def mine(scores):
        calls.append(len(scores.answer))
        a = scores.answer.sum(-1)
        return Signal(a, a.mean(), (a - a.mean()) / a.std(), torch.ones_like(scores.answer))

    settings = {"per_device_train_batch_size": 5, "num_iterations": iterations}
    lab_trainer(tmp_path / "run", objective_fn=mine, max_steps=3 * iterations, **settings).train()
    assert calls == [4] * 12


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


async def waits(completions, **columns):
    await asyncio.sleep(0)
    return [4.0]


def test_coroutines_may_wait():
    assert RewardFunctions([waits])(1, completions=["a"]).tolist() == [4.0]


def test_coroutines_run_inside_a_loop_that_runs():
    """As in a notebook, whose cells run inside one."""

    async def cell():
        try:
            return RewardFunctions([waits])(1, completions=["a"]).tolist()
        except RuntimeError as error:
            return str(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a coroutine that nobody waited for
        assert asyncio.run(cell()) == [4.0]


@pytest.mark.parametrize("given", [(1, 0), torch.tensor([1, 0]), (x for x in (True, False))])
def test_rewards_may_be_any_numbers(given):
    rewards = RewardFunctions([lambda completions: given])(2, completions=["a", "b"])
    assert rewards.tolist() == [1.0, 0.0]
    assert rewards.dtype == torch.float32


@pytest.mark.parametrize(
    "given", [None, 1.0, ["good", "bad"], [[1.0], [2.0]], [math.inf, 0.0]], ids=repr
)
def test_what_is_not_one_number_per_trace_names_the_function(given):
    def mine(completions, **columns):
        return given

    with pytest.raises(RunError, match="reward function mine"):
        RewardFunctions([mine])(2, completions=["a", "b"])


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda completions, **columns: [1.0], "returned 1 rewards for 2 traces"),
        (lambda completions, **columns: [1.0, float("nan")], "returned nan for completion 1"),
        (lambda completions, **columns: [-math.inf, 1.0], "returned -inf for completion 0"),
        (lambda solution, **columns: [1.0, 1.0], "failed: "),
        (lambda completions: [1.0, 1.0], "failed: "),
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


def test_they_get_these_columns_and_no_filler(tmp_path):
    """Five rows at three a step: the second step has two, and a filler."""
    seen = []

    def every(**columns):
        seen.append(columns)
        return [0.0] * len(columns["prompts"])

    lab_trainer(tmp_path / "run", rows=LEVELS[:5], funcs=every).train()
    ours = {"prompts", "completions", "completion_ids", "answer", "trainer_state"}
    assert all(columns.keys() == ours | {"question", "level"} for columns in seen)
    assert [len(columns["prompts"]) for columns in seen] == [12, 8]
    assert all(
        len(column) == len(columns["prompts"])
        for columns in seen
        for name, column in columns.items()
        if name != "trainer_state"
    )


def test_a_reward_function_that_asks_for_a_column_that_is_not_there_stops_the_run(tmp_path):
    def mine(completions, solution, **columns):
        return [0.0] * len(completions)

    with pytest.raises(RunError) as caught:
        lab_trainer(tmp_path / "run", rows=LEVELS, funcs=mine).train()
    assert "reward function mine failed" in caught.value.what
    assert "'solution'" in caught.value.what
    assert "completion_ids, answer, question, level" in caught.value.fix


SHORT_AND_SEVEN = """
def short(completions, **columns):
    return [-len(text) / 20 for text in completions]

async def seven(completions, **columns):
    return ["7" in text or None for text in completions]
"""


def test_functions_by_name_and_as_arguments_are_added_to_the_presets_reward(folder):
    """R = relu(R − R_base) + 0.5·short + 2·seven, then (R − mean)/std, from what is recorded."""
    (folder / "mine_two.py").write_text(SHORT_AND_SEVEN)
    weights = {"reward_weights": [0.5, 2.0], "max_steps": 1}
    names = ["mine_two:short", "mine_two:seven"]
    lab_trainer(folder / "list", reward_funcs=names, **weights).train()
    module = sys.modules["mine_two"]
    lab_trainer(folder / "text", reward_funcs=", ".join(names), **weights).train()
    lab_trainer(folder / "given", funcs=[module.short, module.seven], **weights).train()
    runs = ("list", "text", "given")
    found = {run: read_config(folder / run)["config"]["reward_funcs"] for run in runs}
    assert found == {"list": names, "text": names, "given": ["short", "seven"]}
    metrics = [read_metrics(folder / run) for run in runs]
    assert metrics[0] == metrics[1] == metrics[2]
    rows = read_traces(folder / "list").to_pylist()
    for row in rows:
        text = row["trace"] + " </think>" * row["closed"]
        row["added"] = 0.5 * -len(text.strip()) / 20 + 2.0 * ("7" in text)
    assert len({row["added"] for row in rows}) > 3
    added = sum(row["added"] for row in rows) / 12
    assert metrics[0][0]["added_reward"] == pytest.approx(added, rel=1e-5)
    for row_id in {row["row_id"] for row in rows}:
        group = [row for row in rows if row["row_id"] == row_id]
        b = group[0]["baseline_logps"]
        base = sum(math.exp(x) * -x for x in b) / len(b)

        def worth(row, b=b, base=base):
            l = row["answer_logps"]
            f = sum(math.exp(x) * -y for x, y in zip(l, b, strict=True)) / len(b)
            return max(0.0, f - base) + row["added"]

        r = torch.tensor([worth(row) for row in group])
        got = torch.tensor([row["advantage"] for row in group])
        torch.testing.assert_close(got, (r - r.mean()) / r.std(), rtol=1e-3, atol=1e-3)


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


class PowerOff(Exception):
    """Stands for the power going off."""


class OffIn(TrainerCallback):
    """Raises in step ``step + 1``, after its backward."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise PowerOff


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("preset", ["nrt-ws", "rlvr"])
def test_killed_and_resumed_run_with_reward_functions_is_bit_identical(preset, updates, tmp_path):
    """With two updates a rollout is open at step 3: its rewards are not asked for again."""
    settings = {
        "preset": preset,
        "num_iterations": updates,
        "funcs": [nosy, lengths],
        "reward_weights": [1.0, -0.05],
        "rows": LEVELS,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
    }
    SEEN.clear()
    lab_trainer(tmp_path / "whole", **settings).train()
    whole = [step for *_, step in SEEN]
    assert whole == list(range(0, 5, updates))
    SEEN.clear()
    with pytest.raises(PowerOff):
        lab_trainer(tmp_path / "run", [OffIn(3)], **settings).train()
    SEEN.clear()
    lab_trainer(tmp_path / "run", **settings).train(resume_from_checkpoint=True)
    assert [step for *_, step in SEEN] == [step for step in whole if step >= 3]
    one, two = (
        load_file(tmp_path / f / "checkpoint-5" / "model.safetensors") for f in ("whole", "run")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "run")
    assert read_traces(tmp_path / "whole").equals(read_traces(tmp_path / "run"))


def test_own_rewards_need_something_to_tell_apart(tmp_path):
    with pytest.raises(ConfigError, match="and nothing is sampled here"):
        lab_trainer(tmp_path / "run", preset="sft", funcs=lengths)
    with pytest.raises(ConfigError, match="num_generations is 1"):
        lab_trainer(
            tmp_path / "run", preset="nrt-ws", reward="none", num_generations=1, funcs=[later]
        )
