"""Models that must not be trusted: broken folders, other caches, too little context."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM, Phi3Config, Phi3ForCausalLM

from native_reasoning.config.errors import DataError, PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.template import make_template
from native_reasoning.model.policy import context_of, load_policy
from native_reasoning.scoring.capabilities import capabilities_of
from native_reasoning.training.trainer import NRTTrainer
from tiny import QA, byte_tokenizer, tiny_model


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def config(tmp_path, **settings):
    return NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)


def test_missing_weights_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PolicyError, match="weights are missing"):
        load_policy(str(folder), config(tmp_path))


def test_a_truncated_file_is_our_error(folder, tmp_path):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(PolicyError, match="could be loaded"):
        load_policy(str(folder), config(tmp_path))


def test_weights_of_another_shape_are_our_error(folder, tmp_path):
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**shape, "intermediate_size": 128}))
    with pytest.raises(PolicyError, match="could be loaded"):
        load_policy(str(folder), config(tmp_path))


def test_a_generation_config_that_could_not_be_saved_gives_way_to_training_s_own(folder, tmp_path):
    generation = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    policy = load_policy(str(folder), config(tmp_path))
    policy.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["do_sample"] is True
    assert (saved["temperature"], saved["top_p"], saved["top_k"]) == (1.0, 1.0, 0)


def test_state_space_models_are_refused_before_they_sample():
    torch.manual_seed(0)
    shape = MambaConfig(vocab_size=352, hidden_size=32, num_hidden_layers=2, state_size=8)
    model = MambaForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    with pytest.raises(PolicyError, match="MambaForCausalLM cannot be sampled: .* nats off"):
        capabilities_of(model, make_template(byte_tokenizer()))


def test_rows_that_cannot_fit_the_context_with_a_full_trace_are_dropped(tmp_path):
    rows = [*QA, {"question": "a b c " * 60, "answer": "x"}]
    model = tiny_model("gpt2")  # 512 positions
    args = config(tmp_path, max_trace_length=400, max_answer_length=100)
    trainer = NRTTrainer(model, args, rows, None, byte_tokenizer())
    assert trainer.train_report.count("too_long_for_model") == 1
    with pytest.raises(DataError, match="longer, with a full trace, than the model's context"):
        NRTTrainer(model, config(tmp_path, max_trace_length=600), QA, None, byte_tokenizer())


def test_rows_stay_below_the_length_at_which_longrope_changes_all_factors(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4}
    rope |= {"long_factor": [4.0] * 4, "original_max_position_embeddings": 96}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=352,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            original_max_position_embeddings=96,
            rope_parameters=rope,
            pad_token_id=0,
        )
    )
    ids = torch.arange(5, 25).repeat(2, 5)  # 100 tokens: beyond 96 a short row changes as well
    at = torch.arange(100)[None].repeat(2, 1)
    whole, part = model(ids, position_ids=at).logits, model(ids[:1, :20]).logits
    assert not torch.allclose(whole[:1, :20], part, atol=1e-3)
    assert context_of(model) == 96
    rows = [*QA, {"question": "a b c " * 20, "answer": "x"}]
    args = config(tmp_path, max_trace_length=24, max_answer_length=12)
    trainer = NRTTrainer(model, args, rows, None, byte_tokenizer())
    assert trainer.train_report.count("too_long_for_model") == 1


def test_answers_stop_at_the_end_of_the_context(tmp_path):
    args = config(tmp_path, max_trace_length=400, max_answer_length=500)
    trainer = NRTTrainer(tiny_model("gpt2"), args, None, QA[:2], byte_tokenizer())
    assert trainer.evaluate()["eval_questions"] == 2
