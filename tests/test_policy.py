"""Loading, think-token rows, and saving as an ordinary folder."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PhiConfig
from transformers import PhiForCausalLM as Phi

import tiny
from native_reasoning.config.errors import ConfigError, PolicyError
from native_reasoning.config.nrt_config import NRTConfig
from native_reasoning.data.chat_template import PLAIN_CHAT_TEMPLATE
from native_reasoning.data.rows import Example
from native_reasoning.model.adapters import merged
from native_reasoning.model.policy import (
    disable_dropout,
    load_model,
    load_policy,
    load_tokenizer,
    rows_look_trained,
)

EXAMPLE = Example((("user", "What is 2 + 2?"),), "four", row_id=0, line=1)


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return NRTConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)

    return make


def tables(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


# -- New rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_close_as_the_end_of_turn_does_and_open_as_their_pieces(config, tied):
    model, tokenizer = tiny.tiny_model(tie_word_embeddings=tied), tiny.byte_tokenizer()
    before = [table.detach().clone() for table in tables(model)]
    pieces = tokenizer("<think>", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    policy = load_policy(model, config(), tokenizer)
    assert policy.template.boundary.mode == "new"
    opened, closed, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
    assert (tables(model)[0] is tables(model)[1]) is tied
    for old, new in zip(before, tables(model), strict=True):
        assert new.shape == old.shape  # the padded table neither shrinks nor grows
        assert torch.equal(new[closed], old[end])
        torch.testing.assert_close(new[opened], old[pieces].mean(0))
        others = [i for i in range(len(old)) if i not in (opened, closed)]
        assert torch.equal(new[others], old[others])
    assert model.config.vocab_size == 352


@pytest.mark.parametrize("tied", [True, False])
def test_table_without_room_grows_by_the_new_rows_alone(config, tied):
    tokenizer = tiny.byte_tokenizer()
    model = tiny.tiny_model(tie_word_embeddings=tied)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    before = [table.detach().clone() for table in tables(model)]
    load_policy(model, config(), tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    closed = tokenizer.convert_tokens_to_ids("</think>")
    for old, new in zip(before, tables(model), strict=True):
        assert len(new) == len(tokenizer) == len(old) + 2 == model.config.vocab_size
        assert torch.equal(new[: len(old)], old)
        assert torch.equal(new[closed], old[end])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_head_of_its_own_is_kept_whatever_the_config_says(config, tmp_path, where, adapter):
    model, tokenizer = tiny.tiny_model(tie_word_embeddings=True), tiny.byte_tokenizer()
    model.resize_token_embeddings(330, mean_resizing=False)  # no room for new tokens
    model.lm_head.weight = nn.Parameter(0.1 * torch.randn_like(model.lm_head.weight))
    assert model.config.tie_word_embeddings
    ids = torch.tensor([[40, 41, 42, 300, 43]])
    wanted = model(input_ids=ids).logits
    if where == "folder":
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / "base")
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base")(input_ids=ids).logits, wanted
        )
    policy = load_policy(
        model if where == "memory" else tmp_path / "base", config(use_peft=adapter), tokenizer
    )
    plain = merged(policy.model) if adapter else policy.model
    plain.save_pretrained(tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not read.config.tie_word_embeddings
    for made in (policy.model, read):
        assert made(input_ids=ids).logits.shape[-1] == 332
        torch.testing.assert_close(made(input_ids=ids).logits[..., :330], wanted)


def test_a_head_that_is_the_embedding_is_saved_as_such_whatever_the_config_says(config, tmp_path):
    model = tiny.tiny_model(tie_word_embeddings=True)
    model.config.tie_word_embeddings = False
    policy = load_policy(model, config(), tiny.byte_tokenizer())
    policy.save(tmp_path / "model")
    ids = torch.tensor([[40, 41, 42, 300, 43]])
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(read(input_ids=ids).logits, policy.model(input_ids=ids).logits)


def test_closing_is_as_likely_as_ending_was(config):
    model, tokenizer = tiny.tiny_model().eval(), tiny.byte_tokenizer()
    policy = load_policy(model, config(), tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[40, 41, 42]])).logits
    end, closed = policy.template.end_ids[0], policy.template.boundary.close_ids[0]
    torch.testing.assert_close(logits[..., closed], logits[..., end])


def test_biases_of_the_head_are_initialised_too(config):
    torch.manual_seed(0)
    model = Phi(
        PhiConfig(
            vocab_size=352,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
        )
    )
    tokenizer = tiny.byte_tokenizer()
    pieces = tokenizer("<think>", add_special_tokens=False)["input_ids"]
    bias = model.lm_head.bias
    with torch.no_grad():
        bias.normal_()
    before = bias.detach().clone()
    load_policy(model, config(), tokenizer)
    opened, closed, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
    assert bias[closed] == before[end]
    torch.testing.assert_close(bias[opened], before[pieces].mean())


def test_existing_trained_rows_are_left_alone(config):
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer(think=True)
    before = [table.detach().clone() for table in tables(model)]
    policy = load_policy(model, config(), tokenizer)
    assert policy.template.boundary.mode == "existing"
    assert all(map(torch.equal, before, tables(model)))


@pytest.mark.parametrize("factor", [0.0, 0.1, 30.0])
def test_reserved_rows_that_were_never_trained_are_written(config, factor):
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer(think=True)
    opened, closed, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
    with torch.no_grad():
        model.get_input_embeddings().weight[closed] *= factor
    assert not rows_look_trained(model, [opened, closed])
    assert rows_look_trained(model, [opened])
    policy = load_policy(model, config(), tokenizer)
    assert policy.template.boundary.mode == "new"
    for table in tables(model):
        assert torch.equal(table[closed], table[end])


def test_rows_beyond_the_table_are_not_trained():
    model = tiny.tiny_model()
    assert rows_look_trained(model, [1, 351])
    assert not rows_look_trained(model, [1, 352])


def test_text_boundary_writes_no_rows(config):
    model, tokenizer = tiny.tiny_model(), tiny.byte_tokenizer()
    before = [table.detach().clone() for table in tables(model)]
    policy = load_policy(model, config(boundary="text"), tokenizer)
    assert policy.template.boundary.mode == "text"
    assert all(map(torch.equal, before, tables(model)))
    assert len(tokenizer) == 330


# -- Dropout ---------------------------------------------------------------------------------------


def test_dropout_is_off_in_train_mode_and_stays_in_the_config(config):
    ids = torch.tensor([[40, 41, 42, 43]])
    model = tiny.tiny_model("gpt2").train()
    noisy = [model(input_ids=ids).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    load_policy(model, config(), tiny.byte_tokenizer())
    assert model.training
    quiet = model(input_ids=ids).logits
    torch.testing.assert_close(quiet, model.eval()(input_ids=ids).logits)
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.1


def test_dropout_that_is_a_number_of_the_attention_is_off_too():
    model = tiny.tiny_model(attention_dropout=0.5).train()
    ids = torch.tensor([[40, 41, 42, 43]])
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    torch.testing.assert_close(model(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    other = nn.Sequential(nn.Dropout(0.3), nn.Linear(2, 2))
    disable_dropout(other)
    assert other[0].p == 0


# -- Saving and loading ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_saved_folder_is_an_ordinary_one(kind, config, tmp_path):
    policy = load_policy(tiny.tiny_model(kind), config(), tiny.byte_tokenizer())
    folder = tmp_path / "model"
    policy.save(folder)
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in policy.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert load_file(folder / "model.safetensors").keys() <= model.state_dict().keys()
    messages = [{"role": "user", "content": EXAMPLE.question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert text.endswith("<think>")
    assert tuple(ids) == policy.template.prompt_ids(EXAMPLE)
    assert model.generation_config.eos_token_id == list(policy.template.end_ids)
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 352


def test_reloaded_policy_is_the_same_policy(config, tmp_path):
    first = load_policy(tiny.tiny_model(), config(), tiny.byte_tokenizer())
    first.save(tmp_path / "model")
    again = load_policy(tmp_path / "model", config())
    assert again.template.boundary.mode == "existing"  # new rows look trained from the start
    assert again.template.end_ids == first.template.end_ids
    assert again.template.group(EXAMPLE) == first.template.group(EXAMPLE)
    one, other = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    by_text = load_policy(str(tmp_path / "model"), config())
    assert by_text.template.boundary == again.template.boundary


def test_generation_stops_at_every_end_token_after_loading(config, tmp_path):
    policy = load_policy(tiny.tiny_model(), config(), tiny.byte_tokenizer())
    end = policy.template.end_ids[0]
    assert end != policy.tokenizer.eos_token_id
    with torch.no_grad():  # a head that says the end of turn at once
        policy.model.get_output_embeddings().weight[:] = 0
        hidden = policy.model.model(input_ids=torch.tensor([[40]])).last_hidden_state[0, -1]
        policy.model.get_output_embeddings().weight[end] = hidden
    policy.save(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    out = model.generate(
        torch.tensor([[40]]), attention_mask=torch.ones(1, 1), max_new_tokens=8, do_sample=False
    )
    assert out.tolist() == [[40, end]]


@pytest.mark.parametrize("ends", [None, 9, [9, 2]])
def test_models_own_end_tokens_are_kept(config, ends):
    model = tiny.tiny_model()
    model.generation_config.eos_token_id = ends
    policy = load_policy(model, config(), tiny.byte_tokenizer())
    expected = (2, 0) if ends is None else (2, 0, 9)
    assert policy.template.end_ids == expected
    assert model.generation_config.eos_token_id == list(expected)


def test_a_saved_model_generates_as_traces_were_sampled(config, tmp_path):
    model = tiny.tiny_model()
    habits = {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.1, "num_beams": 2}
    for name, value in {**habits, "max_length": 300, "bos_token_id": 7}.items():
        setattr(model.generation_config, name, value)
    settings = config(temperature=0.9, top_p=0.95)
    load_policy(model, settings, tiny.byte_tokenizer()).save(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    del saved["transformers_version"]
    assert saved == {
        "bos_token_id": 7,
        "do_sample": True,
        "eos_token_id": [2, 0],
        "max_length": 300,
        "pad_token_id": 0,
        "temperature": 0.9,
        "top_k": 0,
        "top_p": 0.95,
    }


def test_new_tags_for_a_model_that_knows_them_are_the_ones_it_knows(config, tmp_path):
    first = load_policy(tiny.tiny_model(), config(boundary="new"), tiny.byte_tokenizer())
    first.save(tmp_path / "model")
    again = load_policy(tmp_path / "model", config(boundary="new"))
    assert again.template.boundary.mode == "existing"
    rows = [policy.model.get_input_embeddings().weight for policy in (first, again)]
    assert torch.equal(*rows)


def test_model_without_generation_config_can_be_used(config):
    model = tiny.tiny_model()
    model.generation_config = None
    assert load_policy(model, config(), tiny.byte_tokenizer()).template.end_ids == (2, 0)


def test_pad_token_is_given_where_there_is_none(config):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = None
    assert load_policy(tiny.tiny_model(), config(), tokenizer).tokenizer.pad_token_id == 0
    tokenizer = tiny.byte_tokenizer()
    tokenizer.pad_token = "<|im_start|>"
    assert load_policy(tiny.tiny_model(), config(), tokenizer).tokenizer.pad_token_id == 1


def test_tokenizer_of_a_model_in_memory_is_found_by_its_name(config, tmp_path):
    load_policy(tiny.tiny_model(), config(), tiny.byte_tokenizer()).save(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert load_policy(model, config()).template.boundary.mode == "existing"


def test_weights_are_float32_unless_model_init_kwargs_say_otherwise(config, tmp_path):
    model = tiny.tiny_model().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="smaller than their rounding"):
        load_policy(model, config(), tiny.byte_tokenizer()).save(tmp_path / "model")
    folder = str(tmp_path / "model")
    assert load_model(folder, config()).dtype == torch.float32
    half = config(model_init_kwargs='{"dtype": "bfloat16"}')
    assert load_model(folder, half).dtype == torch.bfloat16


def test_chat_template_can_come_from_a_file(config, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text("{% for m in messages %}Ω {{ m['content'] }};{% endfor %}", encoding="utf-8")
    settings = config(chat_template_path=str(path))
    policy = load_policy(tiny.tiny_model(), settings, tiny.byte_tokenizer())
    assert policy.template.prompt_text(EXAMPLE) == "Ω What is 2 + 2?;<think>"


def test_settings_reach_the_template(config):
    settings = config(think_open="<t>", think_close="</t>", system_prompt="Be brief.")
    policy = load_policy(tiny.tiny_model(), settings, tiny.byte_tokenizer(chat=False))
    start = PLAIN_CHAT_TEMPLATE and "Be brief.\n\nQuestion: What is 2 + 2?\n\nResponse:\n<t>"
    assert policy.template.prompt_text(EXAMPLE) == start
    assert policy.template.boundary.close_text == "</t>"


# -- Errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "~/absent-model", "a/b/c"])
def test_folder_that_does_not_exist_is_named(config, name):
    for load in (lambda: load_tokenizer(name, config()), lambda: load_model(name, config())):
        with pytest.raises(PolicyError, match=f"model folder {name} does not exist"):
            load()


def test_folder_without_tokenizer_or_weights_says_so(config, tmp_path):
    with pytest.raises(PolicyError, match="holds no model"):
        load_policy(tmp_path, config())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PolicyError, match="no tokenizer could be loaded"):
        load_policy(tmp_path, config())
    (tmp_path / "config.json").unlink()
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="no causal language model could be loaded"):
        load_policy(tmp_path, config())


def test_pickled_weights_are_refused(config, tmp_path):
    model = tiny.tiny_model()
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(PolicyError, match="no causal language model could be loaded"):
        load_policy(tmp_path, config())


def test_unknown_model_argument_is_our_error(config, tmp_path):
    load_policy(tiny.tiny_model(), config(), tiny.byte_tokenizer()).save(tmp_path / "model")
    settings = config(model_init_kwargs={"no_such_argument": 1})
    with pytest.raises(PolicyError, match="no_such_argument"):
        load_policy(tmp_path / "model", settings)


def test_chat_template_file_that_cannot_be_read_is_named(config, tmp_path):
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe\xfa")
    for name in ("absent.jinja", "latin.jinja"):
        settings = config(chat_template_path=str(tmp_path / name))
        with pytest.raises(ConfigError, match=f"chat_template_path .*{name} cannot be read"):
            load_policy(tiny.tiny_model(), settings, tiny.byte_tokenizer())
