"""Colocated and Served with a vLLM that is pretended; weights go through TRL's own code."""

import pytest
import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from native_reasoning.config.errors import RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.adapters import merged, merged_weights
from native_reasoning.model.policy import load_policy
from native_reasoning.rollout.vllm import Colocated, Completion, Request, Served, config_of, longest
from native_reasoning.training.trainer import NRTTrainer
from pretended import PretendedLLM, install
from tiny import QA, byte_tokenizer, tiny_model

pytest.importorskip("trl", reason="TRL is in the test extra")
pytestmark = pytest.mark.filterwarnings("ignore")

REQUESTS = [
    Request((40, 41), 2**62 + 1, 0.7, 0.9, 5, (2, 331)),
    Request((42,), 17, 1.0, 1.0, 3, (2,)),
]


@pytest.fixture
def llm(monkeypatch):
    """The pretended vLLM, with what it was started with."""
    return install(monkeypatch.setitem, monkeypatch.setattr, PretendedLLM())


def policy_of(tmp_path, tied=True, **settings):
    args = NRTConfig(output_dir=str(tmp_path), use_cpu=True, use_vllm=True, **settings)
    model = tiny_model(tie_word_embeddings=tied)
    return load_policy(model, args, byte_tokenizer()), args


def disturb(model):
    """Other weights everywhere, also where an adapter begins at zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))


# -- Colocated -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("adapter", [False, True])
def test_vllm_gets_each_weight_once_with_the_adapter_in_it(tmp_path, llm, tied, adapter):
    policy, args = policy_of(tmp_path, tied, use_peft=adapter)
    disturb(policy.model)
    before = {name: p.clone() for name, p in policy.model.named_parameters()}
    Colocated(policy.model, args, policy.template, Accelerator(cpu=True)).wake()
    plain = merged(policy.model) if adapter else policy.model
    rows = policy.template.vocabulary
    wanted = dict(plain.named_parameters())
    assert llm.weights.keys() == wanted.keys()
    assert ("lm_head.weight" in wanted) != tied
    for name, weight in wanted.items():
        cut = weight[:rows] if len(weight) == 352 else weight
        assert torch.equal(llm.weights[name], cut), name
    assert len(llm.weights["model.embed_tokens.weight"]) == rows == 332
    for name, p in policy.model.named_parameters():
        assert torch.equal(p, before[name]), f"{name} was changed"


@pytest.mark.parametrize("new", [True, False])
def test_merged_weights_are_those_of_the_merged_model(tmp_path, new):
    policy, _ = policy_of(tmp_path, False, use_peft=True, boundary="new" if new else "text")
    disturb(policy.model)
    found, wanted = (
        dict(merged_weights(policy.model)),
        dict(merged(policy.model).named_parameters()),
    )
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_vllm_is_made_from_the_configuration_alone(tmp_path, llm):
    policy, args = policy_of(tmp_path, max_prompt_length=40, max_trace_length=20)
    torch.manual_seed(12)
    Colocated(policy.model, args, policy.template, Accelerator(cpu=True)).wake()
    assert torch.initial_seed() == 12  # the trainer's dropout does not know that vLLM was started
    assert llm.config.vocab_size == 332 and policy.model.config.vocab_size == 352
    assert llm.config.architectures == ["LlamaForCausalLM"]
    assert llm.settings | {"load_format": "dummy", "dtype": "float32"} == llm.settings
    assert llm.settings["logprobs_mode"] == "processed_logprobs"
    assert llm.settings["max_model_len"] == 40 + 20 + 8
    assert config_of(policy.model, 7) is not policy.model.config


def test_room_for_sampled_answers_and_never_more_than_the_models_context(tmp_path):
    policy, args = policy_of(
        tmp_path, preset="rlpr", max_prompt_length=40, max_trace_length=20, max_answer_length=30
    )
    assert longest(args, policy.model) == 98
    args.max_trace_length = 10_000
    assert longest(args, policy.model) == policy.model.config.max_position_embeddings


class Noting(TrainerCallback):
    """Puts each update among what happens to vLLM."""

    def __init__(self, llm):
        self.llm = llm

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.llm.note("update")


def trainer_of(folder, llm, **settings):
    """A trainer of two steps."""
    values = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_generations": 2,
        "max_trace_length": 3,
        "max_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "use_vllm": True,
        **settings,
    }
    args = NRTConfig(output_dir=str(folder), **values)
    return NRTTrainer(tiny_model(), args, QA, None, byte_tokenizer(), callbacks=[Noting(llm)])


def test_vllm_wakes_takes_weights_samples_and_sleeps_before_each_update(tmp_path, llm):
    trainer_of(tmp_path, llm, vllm_enable_sleep_mode=True).train()
    awake = [("wake", "weights"), ("load",), ("reset",), ("wake", "kv_cache")]
    assert llm.done == [*awake, ("generate",), ("sleep", 2), ("update",)] * 2


def test_vllm_sleeps_after_the_answers_that_it_samples(tmp_path, llm):
    llm.answer = lambda prompt, given: (given["stop_token_ids"][-1:], [-0.5])  # the tag, or the end
    settings = {"preset": "rlpr", "max_answer_length": 16, "max_steps": 1}
    trainer_of(tmp_path, llm, vllm_enable_sleep_mode=True, **settings).train()
    assert llm.done[3:] == [("wake", "kv_cache"), ("generate",), ("sleep", 2), ("update",)]
    assert len(llm.asked) == 2 * 2 and llm.asked[0][1]["max_tokens"] == 16


def test_without_sleep_mode_vllm_stays_awake(tmp_path, llm):
    trainer_of(tmp_path, llm).train()
    assert llm.done == [("load",), ("reset",), ("generate",), ("update",)] * 2


@pytest.mark.parametrize("adapter", [False, True])
def test_vllm_computes_outside_the_trainers_autocast(tmp_path, llm, adapter):
    """Which is around everything that a whole copy does where weights are cut."""
    policy, args = policy_of(tmp_path, use_peft=adapter)
    disturb(policy.model)
    plain = merged(policy.model) if adapter else policy.model
    generator, inside = Colocated(policy.model, args, policy.template, Accelerator(cpu=True)), []
    llm.answer = lambda *_: inside.append(torch.is_autocast_enabled("cpu")) or ([9], [-0.5])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        generator.wake()
        generator.generate(REQUESTS)
        assert torch.is_autocast_enabled("cpu")
    assert inside == [False, False]
    wanted = dict(plain.named_parameters())
    assert all(torch.equal(w, wanted[name][: len(w)]) for name, w in llm.weights.items())


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("generate", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")),
        ("load", RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")),
        ("start", ValueError("No available memory for the cache blocks. Try increasing it.")),
    ],
    ids=["sampling", "weights", "start"],
)
def test_out_of_memory_in_vllm_ends_in_three_lines(tmp_path, llm, monkeypatch, where, error):
    def fail(*given, **named):
        raise error

    if where == "start":
        monkeypatch.setattr("native_reasoning.rollout.vllm._start_vllm", fail)
    elif where == "load":
        llm.llm_engine.model_executor.driver_worker.model_runner.model.load_weights = fail
    else:
        monkeypatch.setattr(llm, "generate", fail)
    with pytest.raises(RunError) as caught:
        trainer_of(tmp_path, llm).train()
    what, why, fix = str(caught.value).splitlines()
    assert str(error).splitlines()[0] in what and "in vLLM" in what
    assert "shares the device" in why
    assert "--vllm-gpu-memory-utilization than 0.3" in fix
    assert "activation" not in fix and "max-tokens" not in fix  # those are others' memory


@pytest.mark.parametrize("error", [RuntimeError("a kernel failed"), ValueError("no such model")])
def test_what_else_fails_in_vllm_stays_what_it_is(tmp_path, llm, monkeypatch, error):
    def fail(*given, **named):
        raise error

    monkeypatch.setattr(llm, "generate", fail)
    with pytest.raises(type(error), match=str(error)) as caught:
        trainer_of(tmp_path, llm).train()
    assert caught.value is error


def test_a_colocated_request_is_one_sampling_params(tmp_path, llm):
    policy, args = policy_of(tmp_path)
    generator = Colocated(policy.model, args, policy.template, Accelerator(cpu=True))
    generator.wake()
    assert generator.generate(REQUESTS) == [
        Completion((41,) * 5, (-0.5,) * 5),
        Completion((42,) * 3, (-0.5,) * 3),
    ]
    assert [prompt for prompt, _ in llm.asked] == [
        {"prompt_token_ids": [40, 41]},
        {"prompt_token_ids": [42]},
    ]
    assert llm.asked[0][1] == {
        "n": 1,
        "seed": 2**62 + 1,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 5,
        "stop_token_ids": [2, 331],
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


# -- A server --------------------------------------------------------------------------------------


class PretendedClient:
    """What TRL's VLLMClient offers."""

    def __init__(self):
        self.done, self.weights = [], {}

    def init_communicator(self, device):
        self.done.append("communicator")

    def update_named_params(self, metadata, named):
        found = list(named)
        announced = [(n, str(w.dtype).removeprefix("torch."), [*w.shape]) for n, w in found]
        assert announced == metadata
        self.weights = {name: weight.clone() for name, weight in found}
        self.done.append("weights")

    def reset_prefix_cache(self):
        self.done.append("reset")

    def generate(self, prompts, **given):
        ((*_, token),) = prompts
        self.done.append(given)
        return {"completion_ids": [[token] * 2], "logprobs": [[[-0.25], [-0.5]]]}


def test_a_server_gets_the_weights_and_each_request_by_itself(tmp_path, monkeypatch):
    policy, args = policy_of(tmp_path, vllm_mode="server", use_peft=True)
    disturb(policy.model)
    generator, client = Served(policy.model, args, policy.template, Accelerator(cpu=True)), None
    client = PretendedClient()
    monkeypatch.setattr(generator, "connect", lambda: setattr(generator, "client", client))
    generator.wake()
    generator.wake()
    assert client.done == ["communicator", *["weights", "reset"] * 2]
    wanted = dict(merged(policy.model).named_parameters())
    assert client.weights.keys() == wanted.keys()
    assert all(torch.equal(client.weights[name], p) for name, p in wanted.items())
    replies = generator.generate(REQUESTS)
    assert replies == [Completion((t, t), (-0.25, -0.5)) for t in (41, 42)]
    asked = next(given for given in client.done[5:] if given["max_tokens"] == 5)
    assert asked == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 5,
        "logprobs": 0,
        "generation_kwargs": {"seed": 2**62 + 1, "stop_token_ids": [2, 331], "ignore_eos": True},
    }


def test_a_server_that_does_not_answer_is_told_in_three_lines(tmp_path, monkeypatch):
    import trl.generation.vllm_client as theirs

    policy, args = policy_of(tmp_path, vllm_mode="server")

    def refuse(**given):
        raise ConnectionError

    monkeypatch.setattr(theirs, "VLLMClient", refuse)
    generator = Served(policy.model, args, policy.template, Accelerator(cpu=True))
    with pytest.raises(RunError, match="no vLLM server answers at http://127.0.0.1:8000"):
        generator.wake()
