"""Prompts, answers and boundaries on several kinds of tokenizer, all trained in memory."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer, PythonBackend

import tiny
from native_reasoning.config.errors import TemplateError
from native_reasoning.data.chat_template import PLAIN_CHAT_TEMPLATE, existing_pair
from native_reasoning.data.rows import Example
from native_reasoning.data.template import make_template


def with_template(tokenizer, chat_template):
    tokenizer.chat_template = chat_template
    return tokenizer


KINDS = {
    "chatml": lambda: tiny.byte_tokenizer(),
    "bytes without chat template": lambda: tiny.byte_tokenizer(chat=False),
    "qwen3": lambda: with_template(tiny.byte_tokenizer(think=True), tiny.QWEN3),
    "qwen3 without think tokens": lambda: with_template(tiny.byte_tokenizer(), tiny.QWEN3),
    "r1": lambda: with_template(tiny.byte_tokenizer(think=True), tiny.R1),
    "llama2 first": lambda: tiny.metaspace_tokenizer("first"),
    "llama2 always": lambda: tiny.metaspace_tokenizer("always"),
    "metaspace without chat template": lambda: tiny.metaspace_tokenizer(chat_template=None),
    "words": tiny.word_tokenizer,
    "unigram": tiny.unigram_tokenizer,
    "neox": tiny.whitespace_tokenizer,
}
BUILT = {kind: make_template(build()) for kind, build in KINDS.items()}
CONTROL = ["<think>", "</think>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<s>", "</s>"]
CONTROL += ["<end>"]

FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
kinds = pytest.mark.parametrize("kind", KINDS)


def ask(*turns):
    prompt = tuple(("user", turn) if isinstance(turn, str) else turn for turn in turns)
    return Example(prompt=prompt, answer="four", row_id=0, line=1)


def dialogue(*texts):
    return ask(*zip(itertools.cycle(["user", "assistant"]), texts, strict=False))


def served(tokenizer, example):
    """What a server makes of the turns: render the saved template, encode the text."""
    messages = [{"role": role, "content": content} for role, content in example.prompt]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def harmless(text):
    return not any(control in text for control in CONTROL)


# -- Prompts ---------------------------------------------------------------------------------------


@kinds
@FAST
@given(data=st.data())
def test_prompts_equal_the_saved_chat_template(kind, data):
    template = BUILT[kind]
    texts = st.text(max_size=30).filter(harmless)
    content = st.one_of(texts, texts.map(lambda t: f" \n{t}\n "))
    turns = data.draw(st.lists(content, min_size=1, max_size=3).filter(lambda t: len(t) % 2))
    example = dialogue(*turns)
    text, ids = served(template.tokenizer, example)
    assert template.prompt_text(example) == text
    assert template.prompt_ids(example) == ids


@kinds
def test_only_the_opening_tag_is_added_to_the_chat_template(kind):
    before, after = KINDS[kind](), KINDS[kind]()
    template = make_template(after)
    if before.chat_template is None:
        before.chat_template = PLAIN_CHAT_TEMPLATE
    for example in (ask(" What? "), dialogue("a", "b", "c")):
        old, _ = served(before, example)
        expected = old if kind == "r1" else old + template.boundary.open_text
        assert template.prompt_text(example) == expected
        messages = [{"role": role, "content": content} for role, content in example.prompt]
        for tokenizer in (before, after):  # without a generation prompt nothing is added
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            assert text == before.apply_chat_template(messages, tokenize=False)
    assert template.prompt_text(ask("What?")).endswith("<think>" + template.boundary.open_text[7:])


def test_literal_white_space_at_the_end_of_a_chat_template_stays():
    source = "{% for m in messages %}User: {{ m['content'] }}\nBot:{% endfor %}  \n"
    tokenizer = with_template(tiny.byte_tokenizer(), source)
    assert make_template(tokenizer).prompt_text(ask("hi")) == "User: hi\nBot:  <think>"


@kinds
@FAST
@given(parts=st.lists(st.sampled_from([*CONTROL, "four", " ", "\n", "<|im_", "end|>"]), max_size=5))
def test_user_text_never_becomes_a_control_token(kind, parts):
    template, text = BUILT[kind], "".join(parts)
    frame = [i for i in template.prompt_ids(ask("four")) if i in template.control_ids]
    try:
        prompt, answer = template.prompt_ids(ask(text)), template.answer_ids(text)
    except TemplateError:
        # these vocabularies hold their own control words: the row is refused
        assert kind in ("words", "unigram")
        assert not harmless(text)
        return
    assert [i for i in prompt if i in template.control_ids] == frame
    assert template.control_ids.intersection(answer) == {template.end_ids[0]}
    assert answer.index(template.end_ids[0]) == len(answer) - 1
    if kind in BYTES:
        assert text in template.tokenizer.decode(prompt)
        decoded = template.tokenizer.decode(answer[:-1])
        assert decoded == text


def test_control_words_of_the_vocabulary_itself_are_refused():
    with pytest.raises(TemplateError, match="user text holds a control token"):
        BUILT["words"].prompt_ids(ask("the <end> of"))


@pytest.mark.parametrize("kind", ["words", "unigram"])
def test_unknown_words_are_no_control_tokens(kind):
    template = BUILT[kind]
    unknown = template.tokenizer.unk_token_id
    ids = template.prompt_ids(ask("the Ωmega sum"))
    assert unknown in ids
    assert ids == served(template.tokenizer, ask("the Ωmega sum"))[1]
    assert template.answer_ids("Ωmega")[-1] == template.end_ids[0]


def test_added_tokens_for_white_space_are_no_control_tokens():
    template = BUILT["neox"]
    example = ask("def f():\n    return  1")
    ids = template.prompt_ids(example)
    assert template.tokenizer.convert_tokens_to_ids("    ") in ids
    assert ids == served(template.tokenizer, example)[1]


def test_control_tokens_that_take_in_the_users_white_space_keep_the_template():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<|user|>", special=True, rstrip=True)])
    source = "{% for m in messages %}{{ '<|user|>\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
    template = make_template(with_template(tokenizer, source))
    example = ask("\n  indented")
    assert template.prompt_ids(example) == served(tokenizer, example)[1]
    escaped = template.prompt_ids(ask(" <|user|>"))
    assert escaped.count(tokenizer.convert_tokens_to_ids("<|user|>")) == 1


def test_think_tags_in_a_question_are_spelled_out():
    template = BUILT["chatml"]
    tag, closing = template.boundary.close_text, template.boundary.close_ids[0]
    ids = template.prompt_ids(ask(f"what does {tag} do?"))
    assert closing not in ids
    assert template.tokenizer.decode(ids) == template.prompt_text(ask(f"what does {tag} do?"))


# -- Turns -----------------------------------------------------------------------------------------


def test_questions_are_stripped_only_where_the_template_does_it_and_earlier_answers_always():
    text = BUILT["qwen3"].prompt_text(dialogue(" a ", "\n b ", " c"))
    assert "user\n a <|im_end|>" in text
    assert "</think>\n\nb<|im_end|>" in text
    assert BUILT["llama2 first"].prompt_text(dialogue(" a ", "\n b ", " c")) == (
        "<s>[INST] a [/INST] b</s>[INST] c [/INST]<think>"
    )


def test_text_that_a_template_changes_by_more_than_white_space_is_kept():
    source = tiny.CHATML.replace("m['content']", "m['content'].split('|')[-1] ")
    template = make_template(with_template(tiny.byte_tokenizer(), source))
    assert "user\nx| y <|im_end|>" in template.prompt_text(ask("x| y "))


def test_system_prompt_goes_before_the_first_turn_unless_there_is_one():
    template = make_template(tiny.byte_tokenizer(), system_prompt="Be brief.")
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert template.prompt_text(ask("hi")).startswith(start)
    own = template.prompt_text(ask(("system", "Be long."), ("user", "hi")))
    assert "Be brief." not in own
    assert "system\nBe long.<|im_end|>" in own


def test_templates_without_a_system_turn_get_it_in_the_first_turn():
    template = make_template(tiny.metaspace_tokenizer(), system_prompt="Be brief.")
    assert template.prompt_text(ask("hi")) == "<s>[INST] Be brief.\n\nhi [/INST]<think>"
    own = ask(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "</s>"))
    text = template.prompt_text(own)
    assert text == "<s>[INST] S\n\na [/INST] b</s>[INST] </s> [/INST]<think>"
    ids = template.prompt_ids(own)
    assert ids.count(template.tokenizer.eos_token_id) == 1  # the template's own


def test_system_turns_that_a_template_puts_last_stay_there():
    # as Mistral's: the system text stands in the last user turn
    source = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{% if loop.last and "
        "messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '|' }}{% endif %}"
        "{{ m['content'] + ';' }}{% endif %}{% endfor %}"
    )
    template = make_template(with_template(tiny.byte_tokenizer(), source))
    example = ask(("system", "S"), ("user", "a"), ("assistant", "<|im_end|>"), ("user", "c"))
    assert template.prompt_text(example) == "a;<|im_end|>;S|c;<think>"
    assert template.end_ids[0] not in template.prompt_ids(example)


@pytest.mark.parametrize(
    "turns",
    [
        (("user", "a"), ("user", "b")),
        (("assistant", "a"), ("user", "b")),
        (("system", "s"),),
        (("system", "s"), ("user", "a"), ("user", "b")),
    ],
)
def test_turns_in_an_order_that_the_template_refuses_are_an_error(turns):
    with pytest.raises(TemplateError, match="refuses the turns"):
        BUILT["llama2 first"].prompt_ids(ask(*turns))


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[-1]['content'] }}",
        "{% for m in messages %}{{ m['content'] + m['content'] }}{% endfor %}",
    ],
)
def test_templates_that_leave_out_or_repeat_a_turn_are_an_error(source):
    template = make_template(with_template(tiny.byte_tokenizer(), source))
    with pytest.raises(TemplateError, match="leaves out a turn, or writes one twice"):
        template.prompt_ids(dialogue("a", "b", "c"))


@pytest.mark.parametrize("source", ["{% for %}", "{{ raise_exception('never') }}"])
def test_broken_chat_templates_are_our_error(source):
    with pytest.raises(TemplateError, match="chat template refuses"):
        make_template(with_template(tiny.byte_tokenizer(), source))


# -- Boundaries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode", "open_text", "gap"),
    [
        ("chatml", "new", "<think>", ""),
        ("bytes without chat template", "new", "<think>", ""),
        ("qwen3", "existing", "<think>\n", "\n\n"),
        ("qwen3 without think tokens", "new", "<think>\n", "\n\n"),
        ("r1", "existing", "<think>\n", "\n\n"),
        ("llama2 first", "new", "<think>", ""),
        ("words", "new", "<think>", ""),
    ],
)
def test_auto_takes_an_existing_pair_and_the_templates_white_space(kind, mode, open_text, gap):
    b = BUILT[kind].boundary
    assert (b.mode, b.open_text, b.gap) == (mode, open_text, gap)
    assert b.close_ids == (BUILT[kind].tokenizer.convert_tokens_to_ids("</think>"),)
    assert BUILT[kind].prompt_text(ask("hi")).endswith(open_text)


def test_untrained_pair_counts_as_new_unless_it_is_asked_for():
    def mode(**kwargs):
        return make_template(tiny.byte_tokenizer(think=True), **kwargs).boundary.mode

    assert mode(trained=False) == "new"
    assert mode(trained=False, boundary="existing") == "existing"
    assert mode(boundary="new") == "existing"  # a resumed run must not write its rows again


def test_existing_without_think_tokens_is_an_error():
    tokenizer = tiny.byte_tokenizer()
    assert not existing_pair(tokenizer, ("<think>", "</think>"))
    with pytest.raises(TemplateError, match="has no tokens <think> and </think>"):
        make_template(tokenizer, boundary="existing")


def test_new_tokens_survive_skip_special_tokens_and_other_names_can_be_given():
    template = make_template(tiny.byte_tokenizer(), think=("<σκέψη>", "</σκέψη>"))
    tokenizer, (tag,) = template.tokenizer, template.boundary.close_ids
    assert tokenizer.decode([tag], skip_special_tokens=True) == "</σκέψη>"
    assert template.prompt_ids(ask("hi"))[-1] == tokenizer.convert_tokens_to_ids("<σκέψη>")


def test_think_words_of_the_vocabulary_become_tokens_of_their_own():
    core = tiny.word_tokenizer()
    vocabulary = {**core.get_vocab(), "<think>": len(core), "</think>": len(core) + 1}
    state = core.backend_tokenizer
    state.model = type(state.model)(vocabulary, unk_token="<unk>")
    template = make_template(core)
    assert template.boundary.mode == "existing"
    assert template.boundary.close_ids == (vocabulary["</think>"],)
    assert len(core) == len(vocabulary)


@kinds
def test_saved_tokenizer_gives_the_same_prompts_answers_and_boundary(kind, tmp_path):
    template = make_template(KINDS[kind](), trained=False)
    template.tokenizer.save_pretrained(tmp_path)
    again = make_template(AutoTokenizer.from_pretrained(tmp_path))
    assert again.boundary.mode == "existing"
    for name in ("open_text", "close_text", "close_ids", "gap", "lead"):
        assert getattr(again.boundary, name) == getattr(template.boundary, name)
    assert again.end_ids == template.end_ids
    for text in ("What is 2 + 2?", " </think> <|im_end|>"):
        assert again.prompt_ids(ask(text)) == template.prompt_ids(ask(text))
        assert again.answer_ids(text) == template.answer_ids(text)
    third = make_template(again.tokenizer)  # and once more changes nothing
    assert third.tokenizer.chat_template == template.tokenizer.chat_template


BYTES = [
    "chatml",
    "bytes without chat template",
    "qwen3",
    "qwen3 without think tokens",
    "r1",
    "neox",
]


@pytest.mark.parametrize("kind", [*BYTES, "words"])
def test_answers_are_what_the_tokenizer_makes_of_the_text_after_the_tag(kind):
    template = BUILT[kind]
    b = template.boundary
    for answer in ("four", " four", "\nfour", "it is four, or 4", ""):
        whole = template.tokenizer(b.close_text + b.gap + answer, add_special_tokens=False)
        ids = template.answer_ids(answer)
        assert ids[-1] == template.end_ids[0]
        if b.gap and answer.startswith("\n"):  # the gap's tokens are fixed, whatever follows
            assert template.tokenizer.decode(ids[:-1]) == answer
        else:
            assert (*b.close_ids, *template.gap_ids, *ids[:-1]) == tuple(whole["input_ids"])


def test_gap_keeps_its_tokens_where_the_joined_text_would_merge_them_otherwise():
    corpus = [*tiny.CORPUS, *["\n\n", "\n\n"] * 9]  # "\n\n" is a token, but not before a word
    template = make_template(with_template(tiny.byte_tokenizer(corpus=corpus), tiny.QWEN3))
    tokenizer = template.tokenizer
    assert len(template.gap_ids) == 1
    assert len(tokenizer("\n\nfour")["input_ids"]) > len(tokenizer("four")["input_ids"]) + 1
    for answer in ("four", "\nfour", "\n\n", "</think>"):
        assert tokenizer.decode(template.answer_ids(answer)[:-1]) == answer


def test_end_token_that_is_the_unknown_token_too_stays_a_control_token():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.unk_token = tokenizer.eos_token  # as in GPT-2
    template = make_template(tokenizer)
    assert template.answer_ids("a<|endoftext|>").count(tokenizer.eos_token_id) == 0


@pytest.mark.parametrize("kind", ["llama2 first", "llama2 always", "unigram"])
def test_answers_of_tokenizers_that_mark_word_starts_begin_a_word(kind):
    template = BUILT[kind]  # "▁four" after the tag, as a word of a sentence, and as served: "four"
    assert template.token_texts(template.answer_ids("four"))[0].strip() in ("", "f", "fou", "four")
    first = template.tokenizer.convert_ids_to_tokens(template.answer_ids("four")[0])
    assert first.startswith("▁")
    assert template.text(template.answer_ids("four")) == "four"


@kinds
def test_group_is_prompt_and_answer_of_the_example(kind):
    template, example = BUILT[kind], ask("What is 2 + 2?")
    group = template.group(example)
    assert group.example is example
    assert group.weight == 1
    assert group.prompt_ids == template.prompt_ids(example)
    assert group.answer_ids == template.answer_ids("four")
    decoded = template.tokenizer.decode(group.answer_ids[:-1])
    assert decoded.replace(" ", "") == ("<unk>" if kind == "words" else "four")


# -- The text boundary -----------------------------------------------------------------------------


TEXT = "\nThe answer is"


def text_template(build=tiny.byte_tokenizer, text=TEXT):
    return make_template(build(), boundary="text", boundary_text=text)


def test_text_boundary_is_encoded_as_the_joined_text_is():
    template = text_template()
    tokenizer, b = template.tokenizer, template.boundary
    assert tokenizer.decode(b.close_ids) == TEXT
    assert b.open_text == ""
    assert b.lead == " "
    for answer in ("four", "2 + 2", "\n", "éΩ", ""):
        joined = tokenizer(f"so it goes{TEXT} {answer}", add_special_tokens=False)["input_ids"]
        ids = template.answer_ids(answer)
        assert tuple(joined[-len(ids) + 1 :]) == ids[:-1]
        assert ids[-1] == template.end_ids[0]
    assert template.prompt_text(ask("hi")).endswith("<|im_start|>assistant\n")
    assert "<think>" not in tokenizer.get_vocab()


@FAST
@given(answer=st.text(max_size=20).filter(harmless))
def test_no_token_spans_the_text_boundary(answer):
    template = BOUNDED
    joined = template.tokenizer(f"{TEXT} {answer}", add_special_tokens=False)["input_ids"]
    assert (*template.boundary.close_ids, *template.answer_ids(answer)[:-1]) == tuple(joined)


BOUNDED = text_template()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (tiny.metaspace_tokenizer, "So what"),  # its tokens span "t "
        (tiny.byte_tokenizer, ""),
        (tiny.byte_tokenizer, "  "),
        (tiny.byte_tokenizer, "Answer: "),
        (tiny.byte_tokenizer, "Answer:\n"),  # the newline is written Ċ in this vocabulary
        (tiny.byte_tokenizer, "Réponse"),
        (tiny.word_tokenizer, "Hence, unknown words"),
    ],
)
def test_text_that_cannot_be_cut_is_refused(build, text):
    with pytest.raises(TemplateError, match="cannot be cut safely"):
        text_template(build, text)


def test_text_boundary_that_a_token_spans_names_the_token():
    tokenizer = tiny.metaspace_tokenizer()
    with pytest.raises(TemplateError, match=r"such as '[^']*t▁"):
        make_template(tokenizer, boundary="text", boundary_text="So what")


def test_text_closes_a_trace_at_the_end_of_a_token_whatever_its_pieces():
    template = text_template()
    tokenizer = template.tokenizer
    for pieces in (["\nThe", " answer", " is"], ["so", "\nT", "he an", "swer i", "s"]):
        ids = [i for p in pieces for i in tokenizer(p, add_special_tokens=False)["input_ids"]]
        stops = [template.stop_trace(ids[: n + 1]) for n in range(len(ids))]
        assert stops[-1] == "closed"
        assert set(stops[:-1]) <= {None}
    island = tokenizer(f"{TEXT}land", add_special_tokens=False)["input_ids"]
    assert template.stop_trace(island) is None
    assert template.stop_trace([*template.boundary.close_ids, template.end_ids[0]]) == "ended"


def test_user_text_equal_to_the_boundary_text_is_plain_text():
    template = text_template()
    example = ask(f"Fill in:{TEXT} ...")
    assert template.prompt_ids(example) == served(template.tokenizer, example)[1]
    assert template.answer_ids("<|im_end|>").count(template.end_ids[0]) == 1
    spelled = template.tokenizer.decode(template.answer_ids("<|im_end|>")[:-1])
    assert spelled == " <|im_end|>"


# -- Stopping, and text for people -----------------------------------------------------------------


def test_text_that_looks_like_the_tag_does_not_stop_a_trace():
    template = BUILT["chatml"]
    spelled = list(template.plain.encode("</think>", add_special_tokens=False).ids)
    assert template.tokenizer.decode(spelled) == "</think>"
    assert all(template.stop_trace(spelled[: n + 1]) is None for n in range(len(spelled)))
    assert template.stop_trace([5, template.boundary.close_ids[0]]) == "closed"
    assert template.stop_trace([template.end_ids[0]]) == "ended"


def test_answers_stop_at_every_end_token_and_not_at_the_tag():
    template = BUILT["chatml"]
    ends = template.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert template.end_ids == tuple(ends)
    assert [template.stop_answer([7, end]) for end in ends] == ["ended", "ended"]
    assert template.stop_answer([7, template.boundary.close_ids[0]]) is None


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("llama2 first", "</s>"),
        ("words", "<end>"),
        ("neox", "<|im_end|>"),
        ("bytes without chat template", "<|endoftext|>"),
    ],
)
def test_answer_ends_with_the_token_that_ends_a_turn(kind, end):
    template = BUILT[kind]
    assert template.answer_ids("four")[-1] == template.tokenizer.convert_tokens_to_ids(end)


def test_models_own_end_tokens_come_after_the_templates():
    # an id that the tokenizer lacks can be neither sampled nor scored
    template = make_template(tiny.byte_tokenizer(), extra_end_ids=[9, 2, 351])
    assert template.end_ids == (2, 0, 9)
    assert template.stop_trace([9]) == "ended"


def test_template_that_never_writes_an_answer_ends_with_eos():
    source = "{{ bos_token + messages[0]['content'] }}"
    tokenizer = tiny.metaspace_tokenizer(chat_template=source)
    assert make_template(tokenizer).end_ids == (tokenizer.eos_token_id,)


def test_tokenizer_that_prepends_bos_gets_it_in_the_written_template():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.metaspace_tokenizer(chat_template=None)
    assert not make_template(tokenizer).prompt_text(ask("hi")).startswith("<s>")
    tokenizer = tiny.metaspace_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    template = make_template(tokenizer)
    assert template.prompt_text(ask("hi")).startswith("<s>Question: hi")
    assert template.prompt_ids(ask("hi")).count(1) == 1
    assert template.prompt_ids(ask("</s>")).count(1) == 1


def test_answer_prompt_splices_the_tag_only_where_it_was_not_sampled():
    template = BUILT["qwen3"]
    (tag,), gap = template.boundary.close_ids, list(template.gap_ids)
    assert gap
    assert template.tokenizer.decode(gap) == "\n\n"
    assert template.answer_prompt([1, 2], [3, tag], True) == [1, 2, 3, tag, *gap]
    assert template.answer_prompt([1, 2], [3], False) == [1, 2, 3, tag, *gap]
    assert template.answer_prompt([1], template.empty_trace(), True) == [1, tag, *gap]


def test_text_for_people_leaves_out_tags_and_ends():
    template = BUILT["chatml"]
    ids = [*template.answer_ids("it is four")[:-1], template.boundary.close_ids[0]]
    assert template.text([*ids, template.end_ids[0]]) == "it is four"
    bounded = text_template()
    four = list(bounded.answer_ids("it is four")[:-1])
    assert bounded.text([*four, *bounded.boundary.close_ids, bounded.end_ids[0]]) == " it is four"
    assert bounded.is_empty(bounded.boundary.close_ids)
    assert not bounded.is_empty([*four, *bounded.boundary.close_ids])
    answer = template.answer_ids("it is")
    assert "".join(template.token_texts(answer)) == "it is<|im_end|>"


# -- Tokenizers that cannot be used ----------------------------------------------------------------


def test_tokenizer_without_an_end_token_is_an_error():
    tokenizer = tiny.metaspace_tokenizer(chat_template="{{ messages[0]['content'] }}")
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="no end token"):
        make_template(tokenizer)


def test_slow_tokenizer_is_an_error():
    class Slow(PythonBackend):
        vocab_size = 3

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(TemplateError, match="Slow is not a fast tokenizer"):
        make_template(Slow())
