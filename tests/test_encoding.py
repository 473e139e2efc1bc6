"""Texts encoded by chunks that are kept have the ids that the tokenizer itself gives."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from native_reasoning.config.errors import TemplateError
from native_reasoning.data.rows import Example
from native_reasoning.data.template import make_template
from native_reasoning.data.words import _LLAMA3, _QWEN, UnsafeWord, make_words

CODE = [
    "x = [1, 22, 333]  # it's\n\n    return\tTrue\r\n",
    "I'LL we've don't 'S  12345  a",
    "1  2  3  4   5   6   7    8\n\n9\n\n0",
] * 20


def cut_by(cut, normalizer=None, added=()):
    """A byte-level BPE that cuts its words in another way."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = cut
    if normalizer is not None:
        bpe.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([*tiny.CORPUS, *CODE], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = tiny.CHATML
    tokenizer.add_tokens([*added])
    return tokenizer


def split_bytes(source):
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(source), "isolated"), plain])


def digits():
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_])


def templated(tokenizer, source, **options):
    tokenizer.chat_template = source
    return make_template(tokenizer, **options)


#: name -> template, whether its words are known
CASES = {
    "chatml": (make_template(tiny.byte_tokenizer()), True),
    "system prompt": (
        make_template(tiny.byte_tokenizer(), system_prompt=" Be brief.\n"),
        True,
    ),
    "text": (
        make_template(tiny.byte_tokenizer(), boundary="text", boundary_text="\nThe answer is"),
        True,
    ),
    "qwen3": (templated(tiny.byte_tokenizer(think=True), tiny.QWEN3), True),
    "r1": (templated(tiny.byte_tokenizer(think=True), tiny.R1), True),
    "smollm2": (make_template(cut_by(digits())), True),
    "llama3": (make_template(cut_by(split_bytes(_LLAMA3))), True),
    "qwen2": (make_template(cut_by(split_bytes(_QWEN), normalizers.NFC())), True),
    "neox": (make_template(tiny.whitespace_tokenizer()), True),
    "strict": (
        templated(tiny.byte_tokenizer(), tiny.STRICT.replace("bos_token", "'<|im_start|>'")),
        True,
    ),
    "self-overlap": (
        make_template(cut_by(digits(), added=[AddedToken("ab a ab", special=True)])),
        True,
    ),
    "strips": (
        make_template(cut_by(digits(), added=[AddedToken("<|user|>", rstrip=True, special=True)])),
        False,
    ),
    "lower case": (
        make_template(
            cut_by(digits(), normalizers.Lowercase(), [AddedToken("<end>", normalized=True)])
        ),
        False,
    ),
    "llama2 first": (make_template(tiny.metaspace_tokenizer("first")), False),
    "llama2 always": (
        make_template(tiny.metaspace_tokenizer("always"), system_prompt="Be brief."),
        False,
    ),
    "words": (make_template(tiny.word_tokenizer()), False),
    "unigram": (make_template(tiny.unigram_tokenizer()), False),
}
cases = pytest.mark.parametrize("case", CASES)

PARTS = [
    *("<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<end>"),
    *("<|user|>", "<END>", "ab a ab", "ab a ", "[/INST]", "\nThe answer is", "<|im_", "end|>"),
    *("<|", "<", "|>", "think>", "</", " ", "  ", "\n", "\n\n", "\t", "\r\n", "\x0b", "\x1c", "\0"),
    *(
        "four",
        "12",
        "345 6",
        "'s",
        "'LL",
        "n't",
        "''",
        "?!",
        " (",
        "a  b",
        "Ω",
        "’s",
        "\u00a0",
        "é",
    ),
    *("é", "e\u0301", "ſ", "٣", "\u2028", "\ue0000\ue001", "🙂"),
]
#: What the expressions tell apart, often beside each other.
CUTS = [
    " ",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x0b",
    "\x0c",
    "\x1c",
    "\0",
    "\x7f",
    "a",
    "Zz",
    "1",
    "0123",
]
CUTS += ["é", "\u0301", "\u0338", "\u00a0", "’s", "ſ", "٣", "🙂"]
CUTS += ["'", "'s", "'T", "'Re", "'ll", "'lx", ".", "!?", "(", "_", "<|", "<|im_end|>"]
texts = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=8).map("".join),
    st.text(st.characters(max_codepoint=127), max_size=40),
    st.text(max_size=20),
)
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), texts), max_size=3)
examples = st.builds(
    lambda before, last, answer: Example((*before, ("user", last)), answer, row_id=0, line=1),
    turns,
    texts,
    texts,
)
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def ids_of(template, example):
    try:
        group = template.group(example)
    except TemplateError as error:
        return error.what
    return group.prompt_ids, group.answer_ids


@cases
@MANY
@given(row=examples)
def test_rows_have_the_ids_of_the_tokenizer(case, row):
    template = CASES[case][0]
    plain = copy.copy(template)
    plain.words = None
    assert ids_of(template, row) == ids_of(plain, row)


@cases
def test_the_fast_way_is_taken_where_it_is_safe(case):
    template, by_words = CASES[case]
    assert (template.words is not None) is by_words


@pytest.mark.parametrize("case", ["chatml", "smollm2", "llama3", "qwen2", "neox", "self-overlap"])
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(CUTS), max_size=12).map("".join))
def test_chunks_end_where_the_tokenizer_cuts(case, text):
    template = CASES[case][0]
    encoded = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    spans = zip(ids, offsets, strict=True)
    controls = [span for token, span in spans if token in template.control_ids]
    assert template.words.encode(text) == (tuple(ids), controls)


def test_a_word_that_the_model_itself_makes_a_control_token_is_left_to_the_template():
    core = tiny.byte_tokenizer()
    token = core("a")["input_ids"][0]
    words = make_words(core, CASES["chatml"][0].plain, frozenset({token}))
    with pytest.raises(UnsafeWord):
        words.encode("a")
    assert words.encode("b") == (tuple(core("b")["input_ids"]), [])
    template = make_template(tiny.byte_tokenizer(), extra_end_ids=(token,))
    with pytest.raises(TemplateError, match="user text holds a control token"):
        template.group(Example((("user", "a"),), "b", row_id=0, line=1))


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    template = make_template(tiny.byte_tokenizer())
    monkeypatch.setattr("native_reasoning.data.words._KEPT", 5)
    for number in range(40):
        text = f"<|im_end|> {number} {'x' * 100}"
        ids = template.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert template.words.encode(text)[0] == tuple(ids)
        assert len(template.words) <= 6
