"""The prediction of a run's memory, and what is said to lower."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from cli_helpers import LENGTHS
from native_reasoning.cli import memory, needs
from native_reasoning.cli.memory import Load, Shape, layer_bytes, predict
from native_reasoning.data.rows import Example, PromptGroup, Traces
from native_reasoning.data.template import make_template
from native_reasoning.scoring import head
from native_reasoning.scoring.packing import pack
from native_reasoning.scoring.scorer import install_scoring
from tiny import byte_tokenizer

LLAMA = Shape(
    parameters=134_000_000,
    trained=134_000_000,
    width=4,
    vocabulary=49_152,
    hidden=576,
    layers=30,
    mlp=1536,
    heads=9,
    attention=576,
    keys=192,
)
LOAD = Load(prompt=256, trace=512, answer=32, prompts=4, traces=8, micros=2, sampled=8)


# -- What autograd keeps ---------------------------------------------------------------------------


def kept_bytes(layers: int, shape: tuple[int, int, int, int], autocast: bool) -> int:
    """Bytes that the scoring forward of a Llama keeps, weights and their casts apart."""
    hidden, mlp, heads, keys = shape
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(think=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    install_scoring(model)
    template = make_template(tokenizer, boundary="existing")
    group = PromptGroup(Example((), "", row_id=0, line=0), (*range(3, 99),), (*range(3, 19),))
    traces = Traces(tuple((i, *range(20, 83)) for i in range(3, 7)), (False,) * 4)
    batch = pack([group], [traces], template).batch
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {p.T.shape for p in model.parameters() if p.dim() == 2}
    storages, alive = {}, []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        cast = tensor.shape in shapes and tensor.dtype == torch.bfloat16
        if storage.data_ptr() not in weights and not cast:
            alive.append(tensor)
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model(score=batch)
    return sum(storages.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("shape", [(64, 128, 4, 2), (64, 320, 4, 4), (192, 256, 4, 1)])
def test_a_layer_keeps_what_the_formula_says(shape, autocast):
    counted = (kept_bytes(4, shape, autocast) - kept_bytes(2, shape, autocast)) / 2
    hidden, mlp, heads, keys = shape
    load = Load(
        prompt=96, trace=64, answer=16, prompts=1, traces=4, micros=1, sampled=1,
        number=2 if autocast else 4,
    )  # fmt: skip
    said = layer_bytes(
        Shape(0, 0, 4, 0, hidden, 1, mlp, heads, attention=hidden, keys=hidden // heads * keys),
        load,
    )
    assert said == pytest.approx(counted, rel=0.25)


def test_pieces_of_logits_are_those_of_the_head():
    assert {True: head.PIECE["cpu"], False: head.PIECE["other"]} == memory._PIECE
    assert {True: head.KEPT["cpu"], False: head.KEPT["other"]} == memory._KEPT


# -- The parts -------------------------------------------------------------------------------------


def test_parts_add_up():
    found = predict(LLAMA, LOAD)
    always = found.process + found.weights + found.optimizer + found.copies
    assert found.total == always + max(found.sampling, found.training)
    assert found.training >= found.gradients + found.activations + found.head
    assert found.optimizer == 2 * found.weights == 2 * found.gradients


def test_an_adapter_has_small_gradients_and_moments():
    whole, adapter = (
        predict(replace(LLAMA, trained=count, fixed_head=count < LLAMA.trained), LOAD)
        for count in (134_000_000, 4_884_480)
    )
    assert adapter.weights == whole.weights
    assert adapter.optimizer == 2 * adapter.gradients == 8 * 4_884_480
    assert whole.head - adapter.head == 2 * 49_152 * 576 * 4
    assert adapter.activations == whole.activations


@pytest.mark.parametrize("name", Shape.__dataclass_fields__)
def test_a_larger_model_needs_no_less(name):
    totals = [predict(replace(LLAMA, **{name: n * getattr(LLAMA, name)}), LOAD) for n in (1, 2, 4)]
    for part in ("total", "training", "sampling"):
        values = [getattr(t, part) for t in totals]
        assert values == sorted(values)


@pytest.mark.parametrize(
    "name", ["prompt", "trace", "answer", "prompts", "traces", "micros", "sampled", "copies"]
)
@pytest.mark.parametrize(
    "load", [LOAD, replace(LOAD, rows=3), replace(LOAD, checkpointing=True, micros=1)]
)
def test_a_larger_step_needs_no_less(name, load):
    totals = [predict(LLAMA, replace(load, **{name: n})) for n in (3, 4, 7, 40, 300)]
    for part in ("total", "training", "sampling"):
        values = [getattr(t, part) for t in totals]
        assert values == sorted(values)


def test_more_rows_need_more_and_checkpointing_less():
    totals = [predict(LLAMA, replace(LOAD, rows=n)).total for n in range(1, 40)]
    assert totals == sorted(totals)
    assert predict(LLAMA, replace(LOAD, checkpointing=True)).total < predict(LLAMA, LOAD).total
    assert predict(LLAMA, replace(LOAD, doubled=True)).total > predict(LLAMA, LOAD).total
    assert predict(LLAMA, replace(LOAD, number=2)).activations < predict(LLAMA, LOAD).activations


# -- What to lower ---------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [LOAD, replace(LOAD, sampled=512), replace(LOAD, micros=1)])
@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3, 0.15])
def test_suggestions_bring_it_below_the_limit(load, share):
    fixed = predict(LLAMA, load).fixed + predict(LLAMA, load).gradients
    limit = int(fixed + share * (predict(LLAMA, load).total - fixed))
    found = needs.suggestions(LLAMA, load, limit)
    assert found
    names = {
        "--rows-per-forward": "rows",
        "--rollout-batch-size": "sampled",
        "--activation-checkpointing": "checkpointing",
        "--max-trace-length": "trace",
    }
    assert [s["setting"] for s in found] == [n for n in names if n in [s["setting"] for s in found]]
    for step in found:
        load = replace(load, **{names[step["setting"]]: step["value"]})
        assert predict(LLAMA, load).total == step["total"]
    assert found[-1]["total"] <= limit


def test_the_largest_number_of_rows_that_fits_is_named():
    limit = predict(LLAMA, replace(LOAD, rows=5)).total
    (found,) = needs.suggestions(LLAMA, LOAD, limit)
    assert (found["setting"], found["value"]) == ("--rows-per-forward", 5)


def test_nothing_is_said_where_it_fits_or_where_weights_alone_do_not():
    assert needs.suggestions(LLAMA, LOAD, predict(LLAMA, LOAD).total) == []
    assert needs.suggestions(LLAMA, LOAD, predict(LLAMA, LOAD).weights) == []


def test_this_machine_has_memory():
    there = needs.memory_there(cpu=True)
    assert there is None or there > 10**8


def test_check_warns_where_memory_is_short(model, data, nrt, monkeypatch):
    arguments = ["check", data, "--model", model, *LENGTHS]
    found = json.loads(nrt(*arguments, "--json")[1])
    assert found["memory_lower"] is None
    assert found["memory"]["total"] < found["memory_there"]
    limit = int((found["memory"]["total"] - 10_000) / needs.SAFE)
    monkeypatch.setattr(needs, "memory_there", lambda cpu: limit)
    found = json.loads(nrt(*arguments, "--json")[1])
    assert found["memory_there"] == limit > found["memory"]["total"]  # enough, but for the margin
    assert found["memory_lower"][-1]["total"] <= needs.SAFE * limit
    assert "--rows-per-forward" in "".join(found["warnings"])
    code, text, _ = nrt(*arguments)
    assert code == 0
    assert "and this machine has" in text
    assert "--rows-per-forward" in text
    monkeypatch.setattr(needs, "memory_there", lambda cpu: 1000)
    assert "take a smaller model" in nrt(*arguments)[1]


#: Kinds whose configuration lacks a field that most have, or has one for each layer.
COUNTED = {
    "bloom": {"n_layer": 2, "hidden_size": 32, "n_head": 4},
    "mpt": {"n_layers": 2, "d_model": 32, "n_heads": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
}
NOT_COUNTED = {
    "mamba": {"num_hidden_layers": 2, "hidden_size": 32},
    "mamba2": {"num_hidden_layers": 2, "hidden_size": 32, "num_heads": 4, "head_dim": 16},
    "falcon_mamba": {"num_hidden_layers": 2, "hidden_size": 32},
    "rwkv": {"num_hidden_layers": 2, "hidden_size": 32},
    "xlstm": {"num_hidden_layers": 2, "hidden_size": 32, "num_heads": 4},
    "gemma3n_text": {},
    "gemma4_unified": {},
    "dots3_note": {},
}


@pytest.mark.parametrize("kind", [*COUNTED, *NOT_COUNTED])
def test_check_reads_any_configuration(kind, data, tmp_path, nrt):
    shape = AutoConfig.for_model(kind, **{**COUNTED, **NOT_COUNTED}[kind])
    shape.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    arguments = ["check", data, "--model", str(tmp_path / "model"), *LENGTHS]
    code, text, _ = nrt(*arguments)
    assert code == 0
    assert ("not predicted for this kind of model" in text) == (kind in NOT_COUNTED)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(shape)
    found = json.loads(nrt(*arguments, "--json")[1])
    assert found["parameters"] == plain.num_parameters()
    assert (found["memory"] is None) == (kind in NOT_COUNTED)
    if kind in COUNTED:
        assert found["memory"]["weights"] == 4 * plain.num_parameters()
        assert found["context"]["limit"] is None  # such positions have no end


def test_a_configuration_that_lacks_a_field_of_its_kind_says_so(data, tmp_path, refuses):
    shape = AutoConfig.for_model("hunyuan_v1_dense", head_dim=None)  # transformers divides by it
    shape.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    what, _, _ = refuses("check", data, "--model", str(tmp_path / "model"))
    assert "no configuration could be loaded" in what
    assert "TypeError" in what
