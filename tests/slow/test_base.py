"""The tokenizer, the embedded base model, and the script that makes it."""

import pytest
import torch
from lab.pretrain import Recipe, main, pretrain
from lab.tasks import DEMO, documents
from lab.tokenizer import build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from native_reasoning.demo import base_path, make_rows


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small is fastest on one thread; the command line sets it, so it is restored."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_path())


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(base_path())


def chat_ids(tokenizer, question, **options):
    turns = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=False, **options
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_embedded_tokenizer_is_the_built_one(tokenizer):
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("family", DEMO)
def test_round_trip(tokenizer, family):
    for text in documents(DEMO[family], 50, seed=0):
        ids = tokenizer(text)["input_ids"]
        assert len(ids) == len(text.split())
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix(" <eos>")


def test_special_tokens(tokenizer):
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3
    for tag in ("<think>", "</think>"):
        (tag_id,) = tokenizer(tag)["input_ids"]
        token = tokenizer.added_tokens_decoder[tag_id]
        assert not token.special
        assert not token.normalized
        assert tag not in tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_chat_template_spells_the_documents(tokenizer):
    for text in documents(DEMO["style_shift"], 30, seed=1):
        question, rest = text.split(" <think> ", 1)
        prompt = tokenizer(f"{question} <think>")["input_ids"]
        assert chat_ids(tokenizer, question) == prompt
        assert chat_ids(tokenizer, question, enable_thinking=True) == prompt
        silent = [*prompt, tokenizer.convert_tokens_to_ids("</think>")]
        assert chat_ids(tokenizer, question, enable_thinking=False) == silent
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "<think> " + rest.removesuffix(" <eos>")},
        ]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        assert tokenizer(whole)["input_ids"] == tokenizer(text)["input_ids"]


def test_chat_template_takes_several_turns(tokenizer):
    turns = [
        {"role": "user", "content": "add 1 2 3 4 5"},
        {"role": "assistant", "content": "the sum is 5 ."},
        {"role": "user", "content": "tell 0 0 0 0 1"},
    ]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "add 1 2 3 4 5 the sum is 5 .<eos>tell 0 0 0 0 1 <think>"


def test_the_folder_is_small_and_ordinary(tokenizer, model):
    files = {path.name: path.stat().st_size for path in base_path().iterdir()}
    assert sum(files.values()) <= 2_000_000
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(
        files
    )
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def forced_accuracy(model, tokenizer, prompts, rows):
    """Share of rows whose digit the model ranks first, the answer's other words being given."""
    texts = [p + " " + row["answer"] for p, row in zip(prompts, rows, strict=True)]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = model(**encoded).logits
    digits = [tokenizer.convert_tokens_to_ids(row["answer"].split()[-1]) for row in rows]
    return (logits[:, -2].argmax(-1) == torch.tensor(digits)).float().mean().item()


def test_the_base_can_use_a_running_sum_and_cannot_do_without(model, tokenizer):
    """What the lab is for: a useful trace is worth nearly everything, no trace is worth chance."""
    rows = make_rows("style_shift", "heldout", 200, seed=0)
    useful, empty = [], []
    for row in rows:
        digits = [int(digit) for digit in row["question"].split()[1:]]
        totals = " ".join(str(sum(digits[: i + 1]) % 10) for i in range(len(digits)))
        useful.append(f"{row['question']} <think> {totals} </think>")
        empty.append(f"{row['question']} <think> </think>")
    assert forced_accuracy(model, tokenizer, useful, rows) > 0.8
    assert forced_accuracy(model, tokenizer, empty, rows) < 0.2


def test_pretraining_learns_and_repeats_itself(tmp_path):
    families = tuple(DEMO.values())
    recipe = Recipe(steps=12, batch_size=16, warmup_steps=2)
    first = pretrain(tmp_path / "a", families, 0, recipe)
    assert len(first) == 12
    assert first[-1] < first[0]
    assert first == pretrain(tmp_path / "b", families, 0, recipe)
    assert first != pretrain(tmp_path / "c", families, 1, recipe)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_command_line_writes_a_folder_that_loads(tmp_path):
    main([str(tmp_path / "base"), "--steps", "2"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert loaded.num_parameters() == pytest.approx(150_000, rel=0.15)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "base")) == len(build_tokenizer())
