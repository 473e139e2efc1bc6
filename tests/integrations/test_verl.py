"""The plugin inside verl itself: its registries, its loss, its agent loop worker, its trainer.

Skipped where verl is not installed: ``make verl-check`` makes an environment with it. Rows go
through a real TransferQueue on a Ray of this machine; the server answers from a list, and no engine
of verl's runs a model.
"""

import asyncio
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("verl", exc_type=ImportError)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    import torch
    import transfer_queue as tq
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from tensordict import TensorDict
    from transfer_queue import KVBatchMeta
    from verl.experimental.agent_loop import agent_loop
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.trainer.ppo.v1 import agent_loop_tq, get_trainer_cls, trainer_base
    from verl.utils import tensordict_utils as tu
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.rollout.replica import TokenOutput
    from verl.workers.utils.losses import ppo_loss

    from native_reasoning.integrations import verl as plugin

from native_reasoning.config.errors import ConfigError, DataError, RunError, TemplateError
from native_reasoning.integrations.agent_loop import example_of, template_of
from native_reasoning.integrations.demands import supported
from native_reasoning.integrations.spliced import credit
from native_reasoning.objective.credit import preset_objective
from native_reasoning.objective.losses import group_loss
from native_reasoning.objective.types import Judgement
from spliced_rows import GAP, ROUNDING, batch, model, own_scores, spliced
from tiny import byte_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "verl" / "qwen3-0.6b-gsm8k.sh"
pytestmark = pytest.mark.filterwarnings("ignore")  # verl's own


def recipe() -> list[str]:
    """The settings that the recipe gives to verl."""
    text = RECIPE.read_text("utf-8").partition("main_ppo")[2].replace("\\\n", " ")
    return [word for word in shlex.split(text) if word != "$@"]


def verl_config(*overrides):
    """verl's own configuration with the recipe's settings and some more."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", [*recipe(), *overrides])


@pytest.fixture(scope="module", autouse=True)
def _event_loop():
    """The loop that verl's ``get_event_loop`` finds: one that it makes itself stays open."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


KL = (
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
)


# -- Registries ------------------------------------------------------------------------------------


def test_verl_finds_the_plugin_by_its_entry_point_in_a_fresh_process():
    (found,) = [e for e in entry_points(group="verl.plugins") if e.name == "native_reasoning"]
    assert found.value == "native_reasoning.integrations.verl"
    program = """
import verl
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.v1 import get_trainer_cls
print(get_trainer_cls("native_reasoning").__name__)
print(_agent_loop_registry["native_reasoning"]["_target_"])
print(get_policy_loss_fn("native_reasoning/nrt-ws").__module__)
"""
    run = [sys.executable, "-W", "ignore", "-c", program]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [
        "SplicedTrainer",
        "native_reasoning.integrations.agent_loop.SplicedAgentLoop",
        "native_reasoning.integrations.verl",
    ]


def test_every_supported_preset_has_a_loss_and_an_objective_of_ones_own_can_be_added():
    assert set(supported()) <= set(plugin.OBJECTIVES)
    mine = replace(preset_objective("nrt-ws"), answer_coef=0.5)
    try:
        plugin.register_objective("mine", mine)
        assert core_algos.get_policy_loss_fn("native_reasoning/mine")
        assert plugin.OBJECTIVES["mine"] is mine
    finally:
        del plugin.OBJECTIVES["mine"]
        del core_algos.POLICY_LOSS_REGISTRY["native_reasoning/mine"]
    with pytest.raises(ConfigError, match="cannot be trained inside verl"):
        plugin.register_objective("lagging", replace(mine, scored_by="ema"))


# -- The loss, called by verl ----------------------------------------------------------------------


def nested(rows):
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def micro_batches(rows, new, weights, old, reference, parts):
    """``(model output, data)`` as verl's engine hands them to ``ppo_loss``: ragged rows."""
    for part in parts:
        sizes = [len(rows.responses[i].ids) for i in part]

        def ragged(of, part=part, sizes=sizes):
            return nested([of[i, :n] for i, n in zip(part, sizes, strict=True)])

        prompts = [torch.tensor(rows.prompts[i]) for i in part]
        whole = [
            torch.cat([torch.zeros(len(p) - 1), new[i, :n], torch.zeros(1)])
            for p, i, n in zip(prompts, part, sizes, strict=True)
        ]
        data = TensorDict(
            {
                "prompts": nested(prompts),
                "responses": nested([torch.tensor(rows.responses[i].ids) for i in part]),
                "response_mask": ragged(rows.sampled.long()),
                "old_log_probs": ragged(old),
                "advantages": ragged(weights),
                "ref_log_prob": ragged(reference),
            },
            batch_size=len(part),
        )
        about = {"dp_size": 1, "batch_num_tokens": int(rows.sampled.sum())}
        tu.assign_non_tensor(data, global_batch_size=len(rows.names), **about)
        yield {"log_probs": nested(whole)}, data


@pytest.mark.parametrize("name", ["nrt-ws", "nrt-ws-paper", "verifree", "jepo", "rlpr@shared"])
@pytest.mark.parametrize("parts", [[range(8)], [range(3), range(3, 8)]], ids=["one", "two"])
def test_the_gradient_of_verls_loss_is_that_of_ours(name, parts):
    objective = preset_objective(name)
    loss, beta = f"native_reasoning/{name}", objective.beta
    overrides = [
        "actor_rollout_ref.rollout.n=4",
        f"actor_rollout_ref.actor.policy_loss.loss_mode={loss}",
        *(KL if beta else ()),
        f"actor_rollout_ref.actor.kl_loss_coef={beta * 4 / 3}",
    ]
    config = verl_config(*overrides)
    plugin.check_config(lambda key: OmegaConf.select(config, key), objective)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    groups, traces = batch(GAP)
    rows = spliced(GAP, groups, traces)
    theirs, ours, first = model(), model(), model(1)
    new = rows.logps(theirs, GAP.vocabulary)
    with torch.no_grad():
        reference = rows.logps(first, GAP.vocabulary)
        trace_0 = [one.trace for one in own_scores(first, GAP, groups, traces)]
    given = credit(rows.rows(new.detach(), reference), objective, ROUNDING)
    total = torch.zeros((), dtype=torch.float64)
    for output, data in micro_batches(rows, new, given.weights, new.detach(), reference, parts):
        value, metrics = ppo_loss(actor, output, data)
        total = total + value
        assert "actor/ppo_kl" in metrics
    total.backward()
    expected = torch.zeros((), dtype=torch.float64)
    found = own_scores(ours, GAP, groups, traces)
    for scores, trace in zip(found, trace_0, strict=True):
        scores = replace(scores, frozen=Judgement(scores.baseline, trace=trace))
        signal = objective(scores.detach())
        expected = expected + group_loss(scores, signal, objective).total() / 6
    expected.backward()
    pairs = list(zip(theirs.parameters(), ours.parameters(), strict=True))
    theirs_grad, ours_grad = (
        torch.cat([pair[side].grad.flatten() for pair in pairs]) for side in (0, 1)
    )
    assert ours_grad.norm() > 1e-6
    assert (theirs_grad - ours_grad).norm() <= 3e-6 * ours_grad.norm()


# -- From the agent loop worker to the weights -----------------------------------------------------


class Server:
    """Answers with one sampled sequence after another."""

    def __init__(self, *sequences):
        self.sequences, self.asked = list(sequences), []

    async def generate(self, request_id, *, prompt_ids, sampling_params, **options):
        self.asked.append((prompt_ids, sampling_params))
        ids = self.sequences.pop(0)
        about = {"global_steps": 0, "min_global_steps": 0, "max_global_steps": 0}
        logps = [-1.0] * len(ids)
        return TokenOutput(token_ids=ids, log_probs=logps, extra_fields=about)


def worker(server, config, tokenizer=GAP.tokenizer):
    """verl's agent loop worker without the cluster that its constructor talks to."""
    made = object.__new__(agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class)
    made.config, made.llm_client, made.tokenizer = config, server, tokenizer
    made.rollout_config, made.processor = config.actor_rollout_ref.rollout, None
    made.hf_model_type, made.dataset_cls, made.tools = None, agent_loop.RLHFDataset, []
    made.reward_loop_worker_handles, made.distillation_enabled = None, False
    made.mm_processor_kwargs = {}
    return made


def prompt_row(question="2 + 2?", answer="4", **more):
    return {
        "raw_prompt": [{"role": "user", "content": question}],
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "agent_name": "native_reasoning",
        "index": 3,
        "global_steps": 1,
        **more,
    }


def sessions(of, row, uid, n):
    """Runs the sessions of a prompt in order, so that the server's list is in order too."""
    trajectory = {"step": 1, "sample_index": 3, "rollout_n": 0, "validate": False}

    async def run():
        for session in range(n):
            await of._run_agent_loop(
                {"temperature": 1.0},
                trajectory,
                trace=False,
                session_id=session,
                **{**row, "uid": uid},
            )

    agent_loop.RolloutTraceConfig.init("", "", None)
    agent_loop.get_event_loop().run_until_complete(run())


@pytest.fixture(scope="module")
def queue():
    """TransferQueue on a Ray of this machine alone."""
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    tq.init()
    yield tq
    tq.close()
    ray.shutdown()


(TAG,), (TURN, _) = GAP.boundary.close_ids, GAP.end_ids
LIMIT = 320 - 1 - len(GAP.gap_ids) - 2


def test_from_sampled_ids_to_the_weights_of_their_tokens(queue):
    config = verl_config("actor_rollout_ref.rollout.n=4")
    server = Server([61, 62, 63, TAG], [64, 65, TURN], [66] * 400, [TAG], [67, TAG], [68, TAG])
    loop = worker(server, config)
    sessions(loop, prompt_row(), "a", 4)
    sessions(loop, prompt_row("A colour", "It is red."), "b", 4)
    stored = queue.kv_list("train")["train"]
    keys = [f"{uid}_{session}_0" for uid in "ab" for session in range(4)]
    assert sorted(stored) == sorted(keys)

    group = GAP.group(example_of(prompt_row()))
    assert server.asked[0][0] == list(group.prompt_ids)
    stops = [TAG, *GAP.end_ids]
    own = {"max_tokens": LIMIT, "stop_token_ids": stops, "ignore_eos": True}
    assert server.asked[0][1] == {"temperature": 1.0, **own}
    after = (*GAP.gap_ids, *group.answer_ids)
    expected = {
        "a_0_0": ((TAG, *after), 0),
        "a_1_0": ((61, 62, 63, TAG, *after), 4),
        "a_2_0": ((64, 65, TAG, *after), 2),
        "a_3_0": ((66,) * LIMIT + (TAG, *after), LIMIT),
    }
    for key, (ids, sampled) in expected.items():
        row = queue.kv_batch_get([key], "train", ["responses", "response_mask", "input_ids"])
        assert tuple(row["responses"][0].tolist()) == ids
        assert row["response_mask"][0].tolist() == [int(i < sampled) for i in range(len(ids))]
        assert row["input_ids"][0].tolist() == [*group.prompt_ids, *ids]

    # rows in another order, filled up by verl, and log-probabilities as its pass writes them
    order = [keys[i] for i in (5, 0, 7, 2, 1, 3, 6, 4)]
    tags = [stored[key] for key in order]
    part = KVBatchMeta(keys=order, tags=tags, partition_id="train")
    filled = upsample_batch_to_divisible_size(part, 5, GAP.end_ids[0])
    assert len(filled) == 10 and filled.tags[-1]["is_padding"]
    noise, sizes = torch.Generator().manual_seed(0), [tag["response_len"] for tag in filled.tags]
    logps = nested([-3 * torch.rand(n, generator=noise) for n in sizes])
    fields = TensorDict({"old_log_probs": logps}, batch_size=10)
    filled = queue.kv_batch_put(keys=filled.keys, partition_id="train", fields=fields)

    trainer = object.__new__(plugin.SplicedTrainer)
    trainer.objective, trainer.rounding = plugin.OBJECTIVES["nrt-ws-paper"], 1e-5
    metrics = {}
    written = trainer._compute_advantage(filled, metrics)
    assert written.keys == filled.keys
    assert metrics["native_reasoning/closed"] == pytest.approx(4 / 6)
    names = ["uid", "old_log_probs", "extra_fields", "advantages", "rm_scores"]
    data = queue.kv_batch_get(order, "train", names)
    rows = plugin.rows_of(data, tags)
    assert list(rows.groups) == list("babaaabb")
    given = credit(rows, trainer.objective, 1e-5)
    assert given.weights.any() and not given.weights[1].any()
    for i, n in enumerate(sizes[:8]):
        assert torch.equal(data["advantages"][i], given.weights[i, :n])
        assert data["rm_scores"][i][-1] == given.rewards[i]
        assert not data["rm_scores"][i][:-1].any()
    padding = queue.kv_batch_get(filled.keys[8:], "train", ["advantages", "rm_scores"])
    assert not padding["advantages"].values().any() and not padding["rm_scores"].values().any()

    # verl's own metrics of such a batch
    trainer.config, trainer.use_critic = config, False
    trainer._rollout_moe_lb_metrics_accumulator = None
    trainer._get_n_gpus_for_throughput = lambda: 1
    timing = dict.fromkeys(["gen", "update_actor", "adv", "step"], 1.0)
    trainer._compute_metrics(written, metrics, timing, 1, 0)
    assert metrics["critic/score/max"] == pytest.approx(float(given.rewards.max()))
    assert metrics["training/off_policy/trajectory_staleness/max"] == 0


def run_alone(server, row, session=1, tokenizer=GAP.tokenizer, **options):
    config = verl_config()
    wrapped = agent_loop.DictConfigWrap
    made = plugin.SplicedAgentLoop(
        trainer_config=wrapped(config),
        server_manager=server,
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=agent_loop.RLHFDataset,
        data_config=wrapped(config.data),
        **options,
    )
    return made.loop.run_until_complete(made.run({}, session_id=session, **row))


def test_the_first_session_samples_nothing_and_is_the_empty_trace():
    server = Server()
    output = run_alone(server, prompt_row(), session=0)
    assert isinstance(output, agent_loop.AgentLoopOutput)
    assert not server.asked and not any(output.response_mask)
    assert output.extra_fields["native_reasoning"]["empty"] is True
    assert output.extra_fields["max_global_steps"] == 0


def test_a_boundary_of_text_is_cut_where_the_text_ends():
    tokenizer = byte_tokenizer()
    template = template_of(tokenizer, "text", "\nThe answer is")
    close = template.boundary.close_ids
    server = Server([61, 62, *close, 70, 71])
    output = run_alone(server, prompt_row(), tokenizer=tokenizer, boundary="text")
    answer = template.group(example_of(prompt_row())).answer_ids
    assert output.response_ids == [61, 62, *close, *answer]
    assert server.asked[0][1]["stop_token_ids"] == list(template.end_ids)


def test_a_trace_that_fits_no_row_and_a_server_that_hides_its_stop_are_told():
    with pytest.raises(DataError, match="row 3 has"):
        run_alone(Server(), prompt_row(answer="red " * 400))
    with pytest.raises(DataError, match="ground_truth None"):
        run_alone(Server(), {**prompt_row(), "reward_model": None})
    with pytest.raises(RunError, match="no stop token"):
        run_alone(Server([61, 62]), prompt_row())
    without_session = plugin.SplicedAgentLoop.run(SimpleNamespace(), {}, **prompt_row())
    with pytest.raises(RunError, match="session_id"):
        agent_loop.get_event_loop().run_until_complete(without_session)


def test_a_model_without_think_tokens_is_refused_and_the_tokenizer_is_left_alone():
    plain = byte_tokenizer()
    for boundary in ("existing", "auto"):
        with pytest.raises(TemplateError, match="no tokens|no think tokens"):
            template_of(plain, boundary, "")
    assert "<think>" not in plain.get_vocab()
    thinking = byte_tokenizer(think=True)
    before = thinking.chat_template
    assert template_of(thinking, "existing", "") is template_of(thinking, "existing", "")
    assert thinking.chat_template == before


# -- The trainer -----------------------------------------------------------------------------------


def test_the_trainer_takes_the_recipe_and_is_verls_synchronous_one(monkeypatch):
    seen = []
    monkeypatch.setattr(
        trainer_base.PPOTrainer, "__init__", lambda self, config: seen.append(config)
    )
    assert get_trainer_cls("native_reasoning") is plugin.SplicedTrainer
    made = plugin.SplicedTrainer(verl_config())
    assert seen[0].trainer.v1.trainer_mode == "sync"
    assert made.objective == preset_objective("nrt-ws") and made.rounding == 5e-3


def test_the_recipes_score_of_validation_is_one_that_verl_loads():
    config = verl_config()
    path = config.reward.custom_reward_function.path
    config.reward.custom_reward_function.path = str(RECIPE.parents[2] / path)
    score = get_custom_reward_fn(config)
    assert score("gsm8k", "<think>2 and 2</think>\n\n4\n", "4") == 1
    assert score("gsm8k", "<think>2 and 2</think> 5", "4") == 0
    assert score("gsm8k", "4", "4") == 0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla", "loss_mode is 'vanilla'"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=native_reasoning/rlpr", "objective 'rlpr'"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=native_reasoning/nrt-w", "did you mean"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=native_reasoning/jepo", "use_kl_loss is"),
        ("actor_rollout_ref.rollout.temperature=0.7", "temperature is 0.7"),
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is is 'token'"),
        ("algorithm.rollout_correction.bypass_mode=True", "bypass_mode is True"),
        ("algorithm.filter_groups.enable=True", "filter_groups.enable is True"),
        ("algorithm.adv_estimator=gae", "critic.enable is None"),
    ],
)
def test_settings_of_verl_that_would_train_something_else_are_refused(override, told):
    with pytest.raises(ConfigError, match=told):
        plugin.SplicedTrainer(verl_config(override))
