"""Adapters on weights in 4 bits: the function that is trained, and the model that is left."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaForCausalLM, TrainerCallback

from native_reasoning.cli.flags import parse
from native_reasoning.cli.inputs import asked_for
from native_reasoning.cli.verbs import VERBS
from native_reasoning.config.errors import ConfigError, PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.model.adapters import ADAPTER_FILE
from native_reasoning.model.policy import load_model, load_policy
from native_reasoning.model.quantised import forget, layers
from native_reasoning.records.folder import read_metrics, read_traces
from native_reasoning.training.trainer import NRTTrainer
from test_adapters import IDS, SETTINGS, logits, trained
from tiny import QA, byte_tokenizer, tiny_model
from watchers import Killed, KillIn

bitsandbytes = pytest.importorskip("bitsandbytes")


def base(folder: Path, tied: bool = False) -> str:
    """A folder with a model that is wide enough for blocks of 64 weights."""
    config = tiny_model(tie_word_embeddings=tied).config
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 128, 16
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


def settings(folder: Path, **changed) -> NRTConfig:
    return NRTConfig(output_dir=str(folder), **{**SETTINGS, "load_in_4bit": True, **changed})


def trainer(folder: Path, model, callbacks=None, **changed) -> NRTTrainer:
    return NRTTrainer(model, settings(folder, **changed), QA, QA[:2], callbacks=callbacks)


def packed(model: nn.Module) -> list[torch.Tensor]:
    return [layer.weight.data.clone() for layer in layers(model).values()]


@pytest.mark.parametrize("tied", [True, False])
def test_the_adapter_is_trained_and_the_finished_model_is_ordinary(tmp_path, tied):
    start = base(tmp_path / "base", tied)
    made = trainer(tmp_path / "run", start)
    assert len(layers(made.model)) == 14  # seven of each of two decoder layers
    weights = packed(made.model)
    before = {n: p.detach().clone() for n, p in trained(made.model).items()}
    made.train()
    assert all(not torch.equal(p, before[n]) for n, p in trained(made.model).items())
    assert all(torch.equal(a, b) for a, b in zip(weights, packed(made.model), strict=True))
    made.checkpoints.save_whole_model(tmp_path / "model")
    assert len(layers(made.model)) == 14  # merging was of a copy
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(type(m) is nn.Linear for m in read.modules() if isinstance(m, nn.Linear))
    assert "quantization_config" not in (tmp_path / "model" / "config.json").read_text()
    torch.testing.assert_close(logits(read), logits(made.model), rtol=1e-4, atol=1e-5)
    # the base as it was before it was rounded is another function
    assert not torch.allclose(
        logits(AutoModelForCausalLM.from_pretrained(start)), logits(made.model), atol=1e-3
    )


class FirstGradient(TrainerCallback):
    """Gradients of the first step by name."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {n: p.grad.clone() for n, p in trained(model).items()}


def test_traces_and_gradients_are_those_of_the_weights_written_out(tmp_path):
    start = base(tmp_path / "base")
    whole = load_model(start, settings(tmp_path / "x"))
    forget(whole)
    whole.save_pretrained(tmp_path / "written")
    byte_tokenizer().save_pretrained(tmp_path / "written")
    found = {}
    for name, model, in_4bit in (("4", start, True), ("32", str(tmp_path / "written"), False)):
        gradient = FirstGradient()
        made = trainer(
            tmp_path / name, model, [gradient], max_steps=1, max_grad_norm=0.0, load_in_4bit=in_4bit
        )
        made.train()
        traces = read_traces(tmp_path / name).column("trace").to_pylist()
        found[name] = gradient.found, traces
    (one, ours), (other, expected) = found["4"], found["32"]
    assert ours == expected
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-7, msg=name)
    assert sum(bool(g.abs().max() > 1e-5) for g in one.values()) >= 14


def test_what_is_sampled_from_is_what_is_trained(tmp_path):
    """bitsandbytes has another kernel, in bfloat16, for models in eval mode on some CPUs."""
    model = load_policy(base(tmp_path / "base"), settings(tmp_path / "run")).model.eval()
    sampled = logits(model)
    scored = model(input_ids=IDS).logits
    assert scored.requires_grad
    torch.testing.assert_close(sampled, scored.detach(), rtol=1e-6, atol=1e-6)


def test_a_killed_run_ends_as_the_whole_one(tmp_path):
    start = base(tmp_path / "base")
    whole, again = tmp_path / "whole", tmp_path / "again"
    trainer(whole, start).train()
    with pytest.raises(Killed):
        trainer(again, start, [KillIn(2)]).train()
    trainer(again, start).train(resume_from_checkpoint=True)
    one, other = (load_file(f / "checkpoint-4" / ADAPTER_FILE) for f in (whole, again))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_metrics(again) == read_metrics(whole)
    assert read_traces(again) == read_traces(whole)


def test_a_checkpoint_stands_for_its_model_on_the_same_base(tmp_path):
    made = trainer(tmp_path / "run", base(tmp_path / "base"))
    made.train()
    folder = tmp_path / "run" / "checkpoint-4"
    ids = torch.tensor([[40, 41, *made.processing_class.convert_tokens_to_ids(["</think>"]), 42]])
    with pytest.warns(UserWarning, match="is an adapter: merged"):
        here = trainer(tmp_path / "again", str(folder))
    torch.testing.assert_close(
        logits(here.model, ids), logits(made.model, ids), rtol=1e-4, atol=1e-5
    )


# -- The command line ------------------------------------------------------------------------------


def test_the_finished_model_is_not_quantised_again_to_be_evaluated(tmp_path):
    made = trainer(tmp_path / "run", base(tmp_path / "base"))
    made.train()
    made.checkpoints.save_whole_model(tmp_path / "run" / "final")
    for name, in_4bit in (("run", False), ("run/checkpoint-2", True)):
        _, asked = asked_for(parse(VERBS["eval"], [str(tmp_path / name), "--data", "x.jsonl"]))
        assert asked.load_in_4bit == in_4bit


# -- What is refused -------------------------------------------------------------------------------


def test_settings_of_it_need_it_and_it_needs_an_adapter(tmp_path):
    with pytest.raises(ConfigError, match="load_in_4bit is True with use_peft False"):
        settings(tmp_path, use_peft=False)
    with pytest.raises(ConfigError, match="load_in_4bit with vLLM"):
        settings(tmp_path, use_vllm=True)


def test_a_quantised_model_in_memory_is_trained_through_an_adapter(tmp_path):
    start = base(tmp_path / "base")
    given = AutoModelForCausalLM.from_pretrained(
        start, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    with pytest.raises(PolicyError, match="only an adapter"):
        NRTTrainer(given, settings(tmp_path / "run", load_in_4bit=False, use_peft=False), QA)
    with pytest.raises(PolicyError, match="without vLLM"):
        NRTTrainer(given, settings(tmp_path / "run", load_in_4bit=False, use_vllm=True), QA)
    NRTTrainer(given, settings(tmp_path / "run"), QA).train()


def test_without_bitsandbytes_it_says_what_to_install(tmp_path, monkeypatch):
    start = base(tmp_path / "base")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"native-reasoning\[qlora\]"):
        trainer(tmp_path / "run", start)
