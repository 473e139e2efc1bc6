"""Rows encoded many at a time are those that the template encodes one by one."""

import json
from array import array

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny
from native_reasoning.config.errors import TemplateError
from native_reasoning.data.encoding import RowEncoder, fingerprint, has_literal_controls
from native_reasoning.data.rows import Example
from native_reasoning.data.template import make_template
from native_reasoning.data.words import _LLAMA3_SOURCE, UnsafeWord, make_words

QWEN_SOURCE = _LLAMA3_SOURCE.replace(r"\p{N}{1,3}", r"\p{N}")
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


#: name -> template, whether its words are known, whether its control tokens stand for themselves
CASES = {
    "chatml": (make_template(tiny.byte_tokenizer()), True, True),
    "system prompt": (
        make_template(tiny.byte_tokenizer(), system_prompt=" Be brief.\n"),
        True,
        True,
    ),
    "text": (
        make_template(tiny.byte_tokenizer(), boundary="text", boundary_text="\nThe answer is"),
        True,
        True,
    ),
    "qwen3": (templated(tiny.byte_tokenizer(think=True), tiny.QWEN3), True, True),
    "r1": (templated(tiny.byte_tokenizer(think=True), tiny.R1), True, True),
    "smollm2": (make_template(cut_by(digits())), True, True),
    "llama3": (make_template(cut_by(split_bytes(_LLAMA3_SOURCE))), True, True),
    "qwen2": (make_template(cut_by(split_bytes(QWEN_SOURCE), normalizers.NFC())), True, True),
    "neox": (make_template(tiny.whitespace_tokenizer()), True, True),
    "strict": (
        templated(tiny.byte_tokenizer(), tiny.STRICT.replace("bos_token", "'<|im_start|>'")),
        True,
        True,
    ),
    "self-overlap": (
        make_template(cut_by(digits(), added=[AddedToken("ab a ab", special=True)])),
        True,
        False,
    ),
    "strips": (
        make_template(cut_by(digits(), added=[AddedToken("<|user|>", rstrip=True, special=True)])),
        False,
        True,
    ),
    "lower case": (
        make_template(
            cut_by(digits(), normalizers.Lowercase(), [AddedToken("<end>", normalized=True)])
        ),
        False,
        False,
    ),
    "llama2 first": (make_template(tiny.metaspace_tokenizer("first")), False, True),
    "llama2 always": (
        make_template(tiny.metaspace_tokenizer("always"), system_prompt="Be brief."),
        False,
        True,
    ),
    "words": (make_template(tiny.word_tokenizer()), False, True),
    "unigram": (make_template(tiny.unigram_tokenizer()), False, True),
}
ENCODERS = {name: RowEncoder(template) for name, (template, _, _) in CASES.items()}
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


def one_by_one(template, example):
    try:
        group = template.group(example)
    except TemplateError as error:
        return error.what
    return group.prompt_ids, group.answer_ids


def listed(encoded):
    if isinstance(encoded, TemplateError):
        return encoded.what
    return tuple(tuple(array("I", part)) for part in encoded)


@cases
@MANY
@given(rows=st.lists(examples, min_size=1, max_size=4))
def test_rows_are_those_of_the_template(case, rows):
    template = CASES[case][0]
    expected = [one_by_one(template, row) for row in rows]
    assert [listed(row) for row in ENCODERS[case](rows)] == expected


@cases
def test_the_fast_ways_are_taken_where_they_are_safe(case):
    _, by_words, literal = CASES[case]
    encoder = ENCODERS[case]
    assert encoder.literal is literal
    assert (encoder.words is not None) is (by_words and literal)
    row = Example((("user", "Name a colour."),), "Blue, or 12.", row_id=0, line=1)
    jobs = [encoder.template.prompt_pieces(row.prompt), [*encoder._before, (row.answer, True)]]
    assert not literal or None not in encoder._fast(jobs)


@pytest.mark.parametrize("case", ["chatml", "smollm2", "llama3", "qwen2", "neox"])
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from(CUTS), max_size=10).map("".join))
def test_words_are_cut_as_the_tokenizer_cuts(case, text):
    template = CASES[case][0]
    words = make_words(template.tokenizer, template.control_ids)
    ids = template.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(array("I", words.encode(text)[0])) == ids
    plain = text.replace("<|im_end|>", "")
    cuts = template.tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(plain)
    assert words.words(plain) == [plain[start:end] for _, (start, end) in cuts]


def test_a_word_that_the_model_itself_makes_a_control_token_is_left_to_the_template():
    core = tiny.byte_tokenizer()
    words = make_words(core, frozenset({core("a")["input_ids"][0]}))
    with pytest.raises(UnsafeWord):
        words.encode("a")
    assert words.encode("b")[1] == 0


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    template = CASES["chatml"][0]
    words = make_words(template.tokenizer, template.control_ids)
    monkeypatch.setattr("native_reasoning.data.words._KEPT", len(words) + 5)
    for number in range(40):
        text = f"<|im_end|> {number} {'x' * 100}"
        ids = template.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert list(array("I", words.encode(text)[0])) == ids
        assert len(words) <= len(template.control_ids) + 6


@pytest.mark.parametrize(
    ("texts", "literal"),
    [
        (["<a>", "</a>"], True),
        (["<a>", "<a>b"], False),
        (["<a>", "x<"], False),
        (["<a>", "a"], False),
        (["aba"], False),
        ([" <a>"], False),
    ],
)
def test_control_tokens_that_can_overlap_are_not_literal(texts, literal):
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in texts])
    ids = frozenset(tokenizer.convert_tokens_to_ids(text) for text in texts)
    assert has_literal_controls(tokenizer, ids) is literal


def test_the_fingerprint_is_that_of_all_that_ids_depend_on():
    def made(think=False, chat=tiny.CHATML, **options):
        return fingerprint(templated(tiny.byte_tokenizer(think=think), chat, **options))

    assert made() == made()
    others = [
        made(think=True),
        made(chat=tiny.R1),
        made(system_prompt="Be brief."),
        made(boundary="text"),
        made(extra_end_ids=(5,)),
    ]
    assert len({made(), *others}) == 6
    state = json.loads(tiny.byte_tokenizer().backend_tokenizer.to_str())
    state["model"]["merges"].pop()
    core = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|endoftext|>"
    )
    assert fingerprint(templated(core, tiny.CHATML)) not in {made(), *others}
