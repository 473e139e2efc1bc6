"""Adapters: what they are at the start, their gradients, checkpoints, and the merged model."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainerCallback

from native_reasoning.config.errors import ConfigError, PolicyError, RunError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.evaluation.conversation import load_asked
from native_reasoning.model.adapters import (
    ADAPTER_FILE,
    has_adapter,
    load_adapter,
    merged,
    merged_weights,
    save_adapter,
    with_adapter,
    written_into,
)
from native_reasoning.model.inplace import token_layers
from native_reasoning.model.policy import load_policy
from native_reasoning.records.folder import read_config, read_metrics, read_traces
from native_reasoning.rollout.hf import decoder_of
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Killed, KillIn

peft = pytest.importorskip("peft")
NEW = ("<think>", "</think>")
IDS = torch.tensor([[40, 41, 42, 300, 43, 44, 301, 45]])


#: Four steps of four prompts, a checkpoint after each.
SETTINGS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "num_generations": 3,
    "max_trace_length": 6,
    "max_answer_length": 16,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "max_steps": 4,
    "save_steps": 1,
    "save_total_limit": None,
    "use_cpu": True,
    "use_peft": True,
}


def trainer(
    folder: Path, model=None, callbacks=None, peft_config=None, eval_dataset=None, **settings
) -> NRTTrainer:
    values = {**SETTINGS, "lora_r": 4, "lora_alpha": 8, **settings}
    args = NRTConfig(output_dir=str(folder), **values)
    model = tiny_model() if model is None else model
    tokenizer = byte_tokenizer()
    return NRTTrainer(
        model, args, QA, eval_dataset, tokenizer, callbacks=callbacks, peft_config=peft_config
    )


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}


def logits(model: nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def set_at_random(model: nn.Module) -> None:
    """What is trained becomes numbers of the size that a long training gives it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in trained(model).values():
            p.normal_(std=0.2)


# -- At the start ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_policy_is_the_model_and_little_of_it_is_trained(tmp_path, tied):
    config = NRTConfig(output_dir=str(tmp_path), use_cpu=True, use_peft=True, lora_r=2)
    plain = NRTConfig(output_dir=str(tmp_path), use_cpu=True)
    with_one = load_policy(tiny_model(tie_word_embeddings=tied), config, byte_tokenizer())
    without = load_policy(tiny_model(tie_word_embeddings=tied), plain, byte_tokenizer())
    assert has_adapter(with_one.model)
    assert not has_adapter(without.model)
    assert torch.equal(logits(with_one.model, IDS), logits(without.model, IDS))
    names = trained(with_one.model)
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    tables = [name for name in names if "trainable_tokens" in name]
    assert len(tables) == (1 if tied else 2)
    assert all(names[name].shape[0] == 2 for name in tables)  # the two think tokens
    layers = [m for m in without.model.model.modules() if isinstance(m, nn.Linear)]
    count = sum(2 * (layer.in_features + layer.out_features) for layer in layers)
    assert sum(p.numel() for n, p in names.items() if "lora_" in n) == count


def test_known_think_tokens_have_no_rows_of_their_own(tmp_path):
    config = NRTConfig(
        output_dir=str(tmp_path), use_cpu=True, use_peft=True, boundary="text", boundary_text="so X"
    )
    policy = load_policy(tiny_model(), config, byte_tokenizer())
    assert all("lora_" in name for name in trained(policy.model))


# -- Gradients -------------------------------------------------------------------------------------


class Kept(TrainerCallback):
    """Weights and gradients of the first step, by name."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def first_step(folder: Path, **settings) -> Kept:
    kept = Kept()
    trainer(folder, callbacks=[kept], max_steps=1, max_grad_norm=0.0, **settings).train()
    return kept


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_whole_model_by_the_chain_rule(tmp_path, tied):
    """With B = 0: dL/dB = (α/r) dL/dW Aᵀ and dL/dA = 0; a new row has its row of dL/dE."""
    whole = first_step(
        tmp_path / "whole",
        model=tiny_model(tie_word_embeddings=tied),
        use_peft=False,
        lora_r=16,
        lora_alpha=32,
    )
    here = first_step(tmp_path / "lora", model=tiny_model(tie_word_embeddings=tied))
    ids = byte_tokenizer()
    ids.add_tokens(list(NEW))
    rows = sorted(ids.convert_tokens_to_ids(list(NEW)))
    sizes = set()
    for name, found in here.grads.items():
        layer = name.partition(".lora_")[0].partition(".token_adapter")[0]
        gradient = whole.grads[f"{layer}.weight"]
        if "lora_B" in name:
            a = here.weights[name.replace("lora_B", "lora_A")]
            expected = 8 / 4 * gradient @ a.T
        elif "lora_A" in name:
            expected = torch.zeros_like(found)
        else:
            expected = gradient[rows]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
        sizes.add(("lora_A" in name, bool(expected.abs().max() > 1e-4)))
    assert sizes == {(True, False), (False, True)}  # everything but A has a gradient, and A none


def test_training_changes_the_adapter_alone(tmp_path):
    made = trainer(tmp_path / "run")
    before, start = (
        frozen(made.model),
        {n: p.detach().clone() for n, p in trained(made.model).items()},
    )
    made.train()
    tables = {id(layer.base_layer.weight) for layer in token_layers(made.model)}
    (ids,) = {tuple(layer.token_indices["default"]) for layer in token_layers(made.model)}
    assert len(tables) == 2
    for name, p in made.model.named_parameters():
        if p.requires_grad:
            continue
        same = (p == before[name]).all(-1)
        if id(p) in tables:  # the trained rows are written over those they stand for
            assert sorted((~same).nonzero().flatten().tolist()) == list(ids)
        else:
            assert same.all()
    assert all(not torch.equal(p, start[n]) for n, p in trained(made.model).items())


# -- Checkpoints -----------------------------------------------------------------------------------


def ending(folder: Path):
    kept = load_file(folder / "checkpoint-4" / ADAPTER_FILE)
    return kept, read_metrics(folder), read_traces(folder)


@pytest.mark.parametrize(
    "settings", [{}, {"preset": "nover"}, {"preset": "dro"}], ids=["nrt-ws", "nover", "dro"]
)
def test_a_killed_run_ends_as_the_whole_one(tmp_path, settings):
    whole, again = tmp_path / "whole", tmp_path / "again"
    trainer(whole, **settings).train()
    with pytest.raises(Killed):
        trainer(again, callbacks=[KillIn(2)], **settings).train()
    trainer(again, **settings).train(resume_from_checkpoint=True)
    (one, metrics, traces), (other, *rest) = ending(whole), ending(again)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert rest[0] == metrics
    assert rest[1] == traces


def test_a_checkpoint_is_small_and_peft_reads_it(tmp_path):
    settings = {"boundary": "text", "boundary_text": "so X"}
    made = trainer(tmp_path / "run", **settings)
    made.train()
    folder = tmp_path / "run" / "checkpoint-4"
    assert not list(folder.glob("model*"))
    read = peft.PeftModel.from_pretrained(tiny_model(), folder)
    assert torch.equal(logits(read, IDS), logits(made.model, IDS))


def test_the_best_checkpoint_comes_back(tmp_path):
    made = trainer(
        tmp_path / "run",
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="uplift",
        eval_dataset=QA[:3],
    )
    made.train()
    best = load_file(Path(made.state.best_model_checkpoint) / ADAPTER_FILE)
    made.checkpoints.save_whole_model(tmp_path / "model")
    kept = {p.sum().item() for p in trained(made.model).values()}
    assert kept == {t.sum().item() for t in best.values()}


def test_a_checkpoint_of_another_rank_is_refused(tmp_path):
    trainer(tmp_path / "run", max_steps=2).train()
    with pytest.raises(RunError, match="another adapter"):
        trainer(tmp_path / "run", lora_r=2).train(resume_from_checkpoint=True)


def test_config_yaml_says_what_adapter_it_was(tmp_path):
    trainer(tmp_path / "one", max_steps=1).train()
    assert read_config(tmp_path / "one")["config"]["lora_r"] == 4
    given = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = trainer(
        tmp_path / "two", max_steps=1, use_peft=False, peft_config=given, lora_r=16, lora_alpha=32
    )
    made.train()
    names = {
        name.partition(".lora_")[0].rpartition(".")[2]
        for name in trained(made.model)
        if "lora_" in name
    }
    assert names == {"q_proj"}
    assert read_config(tmp_path / "two")["config"]["peft_config"]["target_modules"] == ["q_proj"]


# -- The finished model ----------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_the_finished_model_is_an_ordinary_one_that_says_the_same(tmp_path, tied):
    made = trainer(tmp_path / "run", model=tiny_model(tie_word_embeddings=tied))
    made.train()
    logits(made.model, IDS)  # puts the trained rows into the table
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made.checkpoints.save_whole_model(tmp_path / "model")
    assert not list((tmp_path / "model").glob("adapter*"))
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not has_adapter(read)
    tables = read.get_input_embeddings().weight, read.get_output_embeddings().weight
    assert (tables[0] is tables[1]) is tied
    new = made.processing_class.convert_tokens_to_ids(list(NEW))
    ids = torch.cat([IDS, torch.tensor([new])], dim=1)
    torch.testing.assert_close(logits(read, ids), logits(made.model, ids), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(read, ids), logits(tiny_model(tie_word_embeddings=tied), ids))
    after = dict(made.model.named_parameters())
    assert all(torch.equal(after[n], before[n]) for n in before)  # merging was of a copy


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_stands_for_its_model(tmp_path, tied):
    start = tiny_model(tie_word_embeddings=tied)
    start.resize_token_embeddings(330, mean_resizing=False)  # no room for new tokens
    start.save_pretrained(tmp_path / "base")
    made = trainer(tmp_path / "run", model=str(tmp_path / "base"))
    made.train()
    folder = tmp_path / "run" / "checkpoint-4"
    config = NRTConfig(output_dir=str(tmp_path / "again"), use_cpu=True)
    policy = load_policy(folder, config)
    assert policy.template.boundary.mode == "existing"
    new = made.processing_class.convert_tokens_to_ids(list(NEW))
    ids = torch.tensor([[40, 41, *new, 42]])
    asked = load_asked(str(folder), config, ("on",))  # by benchmarks and conversations
    assert asked.template is not None
    assert asked.template.boundary.mode == "existing"
    for model in (policy.model, asked.model):
        torch.testing.assert_close(
            logits(model, ids), logits(made.model, ids), rtol=1e-4, atol=1e-5
        )


# -- Layers of other kinds -------------------------------------------------------------------------

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
#: Experts of one layer are two stacked tensors in one module.
STACKED = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
    "deepseek_v3": {"n_routed_experts": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1}
    | {"n_group": 1, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16}
    | {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
}


def small(kind: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 352, "hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **{**sizes, **ids, **settings})
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(4) if p.dim() > 1 else p.add_(torch.randn_like(p) / 4)
    return made.eval()


def adapted(model: PreTrainedModel, folder: Path, peft_config=None, **settings) -> PreTrainedModel:
    """A policy with an adapter and new think tokens, as after a training."""
    config = NRTConfig(
        output_dir=str(folder), use_cpu=True, use_peft=peft_config is None, **settings
    )
    policy = load_policy(model, config, byte_tokenizer(), peft_config)
    set_at_random(policy.model)
    return policy.model.eval()


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


WITH_NEW = torch.cat([IDS, torch.tensor([[330, 331, 46, 47]])], dim=1)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # of peft's own
@pytest.mark.parametrize("kind", STACKED)
def test_stacked_experts_leave_as_they_were_trained(tmp_path, kind):
    def base() -> PreTrainedModel:
        return small(kind, **EXPERTS, **STACKED[kind])

    model = adapted(base(), tmp_path)
    wanted = logits(model, WITH_NEW)
    assert any("experts.base_layer.lora_B" in name for name in trained(model))
    assert far(wanted, logits(base(), WITH_NEW)) > 0.5

    plain = merged(model)
    assert far(logits(plain, WITH_NEW), wanted) < 1e-4
    weights, ours = dict(merged_weights(model)), dict(plain.named_parameters())
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[name], ours[name]) for name in ours)
    plain.save_pretrained(tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert far(logits(read, WITH_NEW), wanted) < 1e-4

    save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base(), tmp_path).merge_and_unload()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(ours[name], weight, rtol=1e-4, atol=1e-5)
    assert far(logits(theirs, WITH_NEW), wanted) < 1e-4
    assert far(logits(with_adapter(base(), tmp_path, 352), WITH_NEW), wanted) < 1e-4
    other = adapted(base(), tmp_path)
    load_adapter(other, tmp_path)
    assert torch.equal(logits(other, WITH_NEW), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:the weights are")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_rounding_to_16_bits_is_no_other_model(tmp_path, dtype):
    model = small("mixtral", num_hidden_layers=12, num_local_experts=8).to(dtype)
    with_one = adapted(model, tmp_path)
    assert far(logits(merged(with_one)), logits(with_one)) > 1e-3


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
def test_merging_is_exact_where_the_run_multiplies_in_16_bits(tmp_path):
    model = adapted(small("mixtral", num_local_experts=4), tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        plain, weights = merged(model), dict(merged_weights(model))
    assert far(logits(plain), logits(model)) < 1e-4
    assert all(torch.equal(weights[name], p) for name, p in plain.named_parameters())


@pytest.mark.parametrize("factor", [1.1, 1.001])
def test_a_merge_that_is_another_model_is_not_saved(tmp_path, factor):
    made = trainer(tmp_path / "run")
    set_at_random(made.model)
    projection = made.model.model.layers[1].self_attn.o_proj
    hook = projection.register_forward_hook(lambda layer, args, out: factor * out)
    with pytest.raises(RunError, match="the merged model is not the one that was trained"):
        made.checkpoints.save_whole_model(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    hook.remove()
    made.checkpoints.save_whole_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", ["phi", "gptj"])
def test_a_head_with_trained_rows_keeps_its_bias(tmp_path, kind):
    sizes = {"gptj": {"n_inner": 48, "rotary_dim": 4}, "phi": {"num_key_value_heads": 4}}[kind]
    model = adapted(small(kind, **sizes), tmp_path)
    assert any("lm_head.token_adapter" in name for name in trained(model))
    merged(model).save_pretrained(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert plain.lm_head.bias.abs().max() > 0.1
    wanted = logits(plain, WITH_NEW)
    assert far(logits(model, WITH_NEW), wanted) < 1e-4
    prompt, further = WITH_NEW[0, :-2].tolist(), WITH_NEW[0, -2:]
    # the attention of gptj cannot share prompts
    for share in (False,) if kind == "gptj" else (False, True):
        decoder = decoder_of(model, share)
        with torch.no_grad():
            decoder.start([prompt], 2)
            found = [decoder.logits]
            for token in further:
                decoder.advance(token.repeat(2))
                found.append(decoder.logits)
        for step, each in enumerate(found):
            assert far(each, wanted[:, len(prompt) - 1 + step]) < 1e-4


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_whole_head_of_its_own_is_kept_where_the_embedding_was_one_with_it(tmp_path):
    given = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    text = {"boundary": "text", "boundary_text": "so X"}
    model = adapted(tiny_model(tie_word_embeddings=True), tmp_path, given, **text)
    merged(model).save_pretrained(tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert far(logits(read), logits(model)) < 1e-4


# -- Copies of the policy --------------------------------------------------------------------------


def test_a_first_policy_costs_no_second_model(tmp_path):
    made = trainer(tmp_path / "run", preset="dro")
    judges = made.objective.judges
    assert judges is not None
    for copied in (one for one in (judges.frozen, judges.ema) if one is not None):
        shared = dict(copied.named_parameters())
        own = written_into(made.model)
        assert len(own) == 2
        for name, p in made.model.named_parameters():
            apart = p.requires_grad or id(p) in own
            assert (shared[name].data_ptr() == p.data_ptr()) is not apart


# -- What is refused -------------------------------------------------------------------------------


def test_without_peft_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'native-reasoning\[peft\]'"):
        trainer(tmp_path / "run")


def test_layers_that_are_not_there_are_named(tmp_path):
    with pytest.raises(PolicyError, match="does not fit"):
        trainer(tmp_path / "run", lora_target_modules="no_such_layer")


def test_another_kind_of_adapter_is_refused(tmp_path):
    other = peft.IA3Config(task_type="CAUSAL_LM")
    with pytest.raises(PolicyError, match="peft_config is a IA3Config"):
        trainer(tmp_path / "run", peft_config=other)


def test_a_second_adapter_is_refused(tmp_path):
    made = trainer(tmp_path / "run")
    with pytest.raises(PolicyError, match="an adapter already"):
        trainer(tmp_path / "other", model=made.model)


def test_a_model_in_pefts_wrapper_is_refused_until_it_is_merged(tmp_path):
    given = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_model(), given)
    for settings in ({}, {"use_peft": False, "lora_r": 16, "lora_alpha": 32}):
        with pytest.raises(PolicyError, match="PeftModel, which is no PreTrainedModel") as refused:
            trainer(tmp_path / "run", model=model, **settings)
        assert len(str(refused.value).splitlines()) == 3
    merged_by_peft = model.merge_and_unload()
    wanted = logits(merged_by_peft)
    made = trainer(tmp_path / "run", model=merged_by_peft)
    assert far(logits(made.model)[..., :330], wanted[..., :330]) < 1e-5


def test_a_model_with_an_adapter_of_transformers_is_refused_too(tmp_path):
    model = tiny_model()
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(PolicyError, match="an adapter already"):
        trainer(tmp_path / "run", model=model, use_peft=False, lora_r=16, lora_alpha=32)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
@pytest.mark.filterwarnings("ignore:.*tied")
def test_an_adapter_on_weights_that_two_layers_share_is_refused(tmp_path, name):
    given = peft.LoraConfig(target_modules=["q_proj", name])
    text = {"boundary": "text", "boundary_text": "so X"}
    with pytest.raises(PolicyError, match=f"changes .*{name}, whose weights another layer shares"):
        adapted(tiny_model(tie_word_embeddings=True), tmp_path, given, **text)
    model = adapted(tiny_model(tie_word_embeddings=False), tmp_path, given, **text)
    assert far(logits(merged(model)), logits(model)) < 1e-4
    with pytest.raises(PolicyError, match="does not fit"):  # new rows and a low-rank product
        adapted(tiny_model(tie_word_embeddings=False), tmp_path, given)


def test_merging_leaves_the_model_as_it_was(tmp_path):
    made = trainer(tmp_path / "run", max_steps=1)
    made.train()
    assert has_adapter(made.model)
    plain = merged(made.model)
    assert not has_adapter(plain)
    assert has_adapter(made.model)
    assert set(dict(plain.named_parameters())) == set(dict(tiny_model().named_parameters()))


def test_settings_of_an_adapter_need_one(tmp_path):
    with pytest.raises(ConfigError, match="lora_r is 8 with use_peft False"):
        NRTConfig(output_dir=str(tmp_path), use_cpu=True, lora_r=8)
    with pytest.raises(ConfigError, match="lora_r is 0"):
        NRTConfig(output_dir=str(tmp_path), use_cpu=True, use_peft=True, lora_r=0)


def test_an_adapter_with_a_bias_is_refused(tmp_path):
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_bias=True)
    with pytest.raises(PolicyError, match="lora_bias"):
        trainer(tmp_path / "run", use_peft=False, lora_r=16, lora_alpha=32, peft_config=config)
