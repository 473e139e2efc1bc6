"""Small random models of many kinds, scored and sampled by us and forwarded by transformers alone.

The reference is the saved folder, loaded by transformers and never touched by us: each row alone,
whole, without cache and padding, in eval mode. Ours is in train mode, as training is.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import tiny
from native_reasoning.config.errors import PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.rows import Example, PromptGroup
from native_reasoning.model.policy import load_policy
from native_reasoning.rollout.engine import NoiseKey, Sampling
from native_reasoning.rollout.hf import HFEngine
from native_reasoning.rollout.noise import uniforms
from native_reasoning.scoring.capabilities import capabilities_of
from native_reasoning.scoring.scorer import Scorer

#: What a field of any configuration is set to, where it has that field.
SMALL = {
    352: "vocab_size vocab_size_per_layer_input",
    512: "max_position_embeddings n_positions max_seq_len n_ctx",
    64: "intermediate_size ffn_dim n_inner dim_ff ffn_hidden_size decoder_ffn_dim mamba_d_ssm "
    "rel_extent shared_intermediate_size prefix_dense_intermediate_size",
    32: "hidden_size d_model n_embd moe_intermediate_size expert_intermediate_size lru_width "
    "shared_expert_intermediate_size moe_shared_expert_intermediate_size embedding_dim "
    "expert_ffn_hidden_size word_embed_proj_dim embedding_size",
    16: "q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim mamba_headdim qk_head_dim "
    "attention_chunk_size attention_head_dim index_n_heads o_lora_rank",
    8: "head_dim rotary_dim d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim mamba_d_state "
    "ssm_state_size state_size mamba_chunk_size chunk_size linear_key_head_dim swa_head_dim "
    "linear_value_head_dim index_head_dim index_topk sliding_window sliding_window_size "
    "attention_window_size window_size local_attention hidden_size_per_layer_input laurel_rank "
    "mamba_dt_rank d_rel adapter_rank",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads n_routed_experts "
    "num_experts num_local_experts moe_num_experts mamba_n_heads mamba_num_heads n_mamba_heads "
    "linear_num_value_heads swa_num_attention_heads index_n_heads_ num_memory_heads",
    2: "num_key_value_heads num_experts_per_tok moe_topk moe_k top_k_experts mamba_expand "
    "linear_num_key_heads decoder_layers swa_num_key_value_heads zero_expert_num o_groups hc_mult",
    1: "n_shared_experts n_group topk_group first_k_dense_replace n_groups mamba_n_groups "
    "mamba_ngroups num_dense_layers",
    3: "pad_token_id",  # its row is zero: ours pads with 0, whose row is not
    0: "bos_token_id eos_token_id",
}
FIELDS = {name: value for value, names in SMALL.items() for name in names.split()}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
#: Lists with one entry for each layer: the first of each sort.
SORTS = ("layer_types", "layers_block_type", "mlp_layer_types", "block_types", "indexer_types")

FULL = {"num_key_value_heads": 4}
NOISY = {"attention_dropout": 0.2, "hidden_dropout": 0.2}
ZAMBA = {
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "num_hidden_layers": 4,
    "attention_hidden_size": 64,
    **FULL,
}
#: What a kind needs beside; noise of train mode where it has any.
OWN = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4, "attn_pdrop": 0.2},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "resid_pdrop": 0.2,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, **FULL},
    "deepseek_v3": FULL,
    "deepseek_v32": FULL,
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        "head_dim": 16,
    },
    "falcon": NOISY,
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": 64,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"per_layer_config": {}},
    "glm4_moe_lite": FULL,
    "glm_moe_dsa": FULL,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        name: value
        for sort in ("attn", "expert")
        for name, value in ((f"{sort}_layer_period", 2), (f"{sort}_layer_offset", 1))
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": FULL,
    "mamba2": {"head_dim": 16},
    "minicpm3": FULL,
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": {"router_jitter_noise": 0.2},
    "mixtral": {"router_jitter_noise": 0.2},
    "persimmon": NOISY,
    "phimoe": {"router_jitter_noise": 0.2, "input_jitter_noise": 0.2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": ZAMBA,
    "zamba2": ZAMBA,
}
NAMES = """
    afmoe apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 cohere2_moe ctrl cwm
    dbrx deepseek_v2 deepseek_v3 deepseek_v32 diffllama doge ernie4_5 ernie4_5_moe
    exaone4 exaone_moe falcon falcon_h1 flex_olmo gemma gemma2 gemma3_text gemma3n_text
    gemma4_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa gpt2 gpt_bigcode gpt_neo gpt_neox
    gpt_oss gptj granite granitemoe granitemoehybrid granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe inkling_text jamba jetmoe lfm2 lfm2_moe lfm3 llama llama4_text longcat_flash
    mimo_v2_flash minicpm3 minimax_m2 mistral mixtral modernbert-decoder mpt nanochat
    olmo olmo2 olmo3 olmo_hybrid olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next seed_oss smollm3
    solar_open stablelm starcoder2 vaultgemma xglm zamba
"""
RIGHT = NAMES.split()
#: Kinds that are refused, and what the refusal must say.
REFUSED = {
    "deepseek_v4": "cannot be scored: .* nats off",  # padding changes what it compresses
    "falcon_mamba": "cannot be sampled: .* nats off",
    "mamba": "cannot be sampled: .* nats off",
    "mamba2": "cannot be sampled: .* nats off",
    "marian": "cannot be scored: .* nats off",  # padding is in the way of its positions
    "minimax": "cannot be sampled: .* ValueError: MiniMax uses cache of its own",
    "nemotron_h": "cannot be sampled: .* nats off",  # its cached step does not clamp time steps
    "openai-gpt": "cannot be sampled: .* RuntimeError: ",
    "recurrent_gemma": "cannot be scored: .* nats off",  # padding goes through its recurrence
    "roberta": "cannot be scored: .* nats off",  # counts positions from its padding id
    "rwkv": "cannot be scored: .* nats off",
    "zamba2": "cannot be sampled: .* nats off",  # as nemotron_h
}


def small_model(kind):
    default = AutoConfig.for_model(kind)
    fields = default.to_dict()
    sorts = {
        name: list(dict.fromkeys(fields[name]))[:4]
        for name in SORTS
        if fields.get(name) is not None
    }
    layers = max([2, *map(len, sorts.values())])
    own = {name: (found * layers)[:layers] for name, found in sorts.items()}
    own |= {name: layers for name in LAYERS if name in fields}
    own |= {
        name: value
        for name, value in FIELDS.items()
        if name in fields
        and not isinstance(fields[name], list | dict)
        and (fields[name] is not None or name in ("head_dim", "pad_token_id", *SMALL[0].split()))
    }
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(type(default)(**{**own, **OWN.get(kind, {})}))
    with torch.no_grad():  # large enough that every part shows in the logits
        for parameter in made.parameters():
            if parameter.dim() > 1 and (spread := parameter.std()) > 0:
                parameter.mul_(0.35 / spread)
    return made


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return NRTConfig(output_dir=str(tmp_path_factory.mktemp("run")), use_cpu=True)


def policy_of(kind, config):
    return load_policy(small_model(kind), config, tiny.byte_tokenizer())


EXAMPLE = Example((("user", "?"),), "!", row_id=0, line=1)
GROUPS = [
    PromptGroup(EXAMPLE, tuple(50 + (7 * i) % 97 for i in range(26)), (40, 41, 42, 2)),
    PromptGroup(EXAMPLE, (90, 91, 95), (30, 2)),
]
SAMPLING, KEY = Sampling(2, 7), NoiseKey(seed=0, step=1)
ROWS = [3, 8]


def log_softmax(model, ids, vocabulary):
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, :vocabulary]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("kind", RIGHT)
def test_scores_samples_and_the_saved_folder_are_those_of_transformers(kind, config, tmp_path):
    policy = policy_of(kind, config)
    model, template = policy.model, policy.template
    able = capabilities_of(model, template, training=True)
    policy.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()

    engine = HFEngine(
        model, template.stop_trace, template.vocabulary, share=able.share, batch_size=2
    )
    never = lambda ids: None
    sampled = engine.sample([g.prompt_ids for g in GROUPS], ROWS, SAMPLING, KEY, never)
    traces = engine.rollout(GROUPS, SAMPLING, KEY)
    scorer = Scorer(template, model.device, 1.0, able.layouts, 0.0, 32)
    scores = scorer(model.train(), GROUPS, traces)
    model.eval()

    def check(logps, row, count):
        expected = log_softmax(plain, row, template.vocabulary)[range(-1 - count, -1), row[-count:]]
        torch.testing.assert_close(logps.double(), expected, rtol=0, atol=1e-3)

    with torch.no_grad():
        for g, group in enumerate(GROUPS):
            for k, sample in enumerate(sampled[g]):
                ids = [*group.prompt_ids, *sample.ids]
                cdf = log_softmax(plain, ids, template.vocabulary).exp().cumsum(-1)
                noise = uniforms(KEY.seed, KEY.domain, KEY.step, ROWS[g], k, SAMPLING.max_tokens)
                for t, token in enumerate(sample.ids):
                    at = cdf[len(group.prompt_ids) - 1 + t]
                    near = (at - noise[t]).abs().min() < 1e-6
                    assert near or token == int((at <= noise[t]).sum())
            for k, trace in enumerate(traces[g].ids):
                row = template.answer_prompt(group.prompt_ids, trace, traces[g].closed[k])
                check(scores[g].answer[k], [*row, *group.answer_ids], len(group.answer_ids))
                if trace:
                    n = len(trace)
                    check(scores[g].trace[k, :n], [*group.prompt_ids, *trace], n)
            row = template.answer_prompt(group.prompt_ids, template.empty_trace(), True)
            check(scores[g].baseline, [*row, *group.answer_ids], len(group.answer_ids))
        ids = list(GROUPS[0].prompt_ids)
        torch.testing.assert_close(
            log_softmax(model, ids, 352), log_softmax(plain, ids, 352), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_come_out_wrong_are_refused_with_the_cause(kind, config):
    policy = policy_of(kind, config)
    with pytest.raises(PolicyError, match=REFUSED[kind]):
        capabilities_of(policy.model, policy.template, training=True)


def test_the_sweep_is_wide():
    assert len(RIGHT) >= 60
    assert {*RIGHT, *REFUSED} <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
