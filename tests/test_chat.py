"""The saved chat template: thinking on and off, earlier reasoning, and what training sees of it."""

import itertools
from functools import cache

import jinja2.meta
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

import tiny
from native_reasoning.data import load_examples
from native_reasoning.data.chat_template import answered, unwrap
from native_reasoning.data.rows import Example
from native_reasoning.data.template import make_template
from shapes import SHAPES, with_template

shapes = pytest.mark.parametrize("shape", SHAPES)
FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
OWN_REASONING = tuple(shape for shape in SHAPES if shape.startswith("qwen3"))


@cache
def built(shape):
    return make_template(SHAPES[shape]())


def dialogue(*texts):
    return [*zip(itertools.cycle(["user", "assistant"]), texts, strict=False)]


def example(turns):
    return Example(prompt=tuple(turns), answer="four", row_id=0, line=1)


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def served(tokenizer, turns, **kwargs):
    """Text and ids that a server makes of messages."""
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, **{"add_generation_prompt": True, **kwargs}
    )
    return text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# -- Thinking on and off ---------------------------------------------------------------------------


@shapes
def test_what_is_scored_is_the_answer_as_it_follows_the_tag(shape):
    """The gap after the tag is forwarded and not scored, and adds nothing to the answer."""
    template = built(shape)
    boundary, tokenizer = template.boundary, template.tokenizer
    for answer in ("four", "The sum is 0."):
        text = boundary.close_text + boundary.gap + answer
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert template.answer_ids(answer)[-1] == template.end_ids[0]
        scored = template.answer_ids(answer)[:-1]
        if boundary.gap:
            assert (*boundary.close_ids, *template.gap_ids, *scored) == ids
        if tokenizer.unk_token_id not in scored:
            assert tokenizer.decode(scored).strip() == answer


@shapes
def test_thinking_is_what_training_samples_after(shape):
    template = built(shape)
    for turns in (dialogue("What is 2 + 2?"), dialogue(" a\n", "b", "c", "d", "e\n\n")):
        for switch in ({}, {"enable_thinking": True}, {"enable_thinking": None}):
            text, ids = served(template.tokenizer, messages(turns), **switch)
            assert text == template.prompt_text(example(turns))
            assert ids == template.prompt_ids(example(turns))
            assert text.rstrip().endswith("<think>")
            assert text.count("</think>") == 0
        both = template.tokenizer.apply_chat_template(
            messages(turns), add_generation_prompt=True, return_dict=False
        )
        assert tuple(both) == ids


@shapes
def test_thinking_off_is_the_empty_trace_that_training_forwards(shape):
    template = built(shape)
    b = template.boundary
    for turns in (dialogue("What is 2 + 2?"), dialogue(" a\n", "b", "c", "d", "e\n\n")):
        text, ids = served(template.tokenizer, messages(turns), enable_thinking=False)
        assert text == template.prompt_text(example(turns)) + b.close_text + b.gap
        prompt = template.prompt_ids(example(turns))
        assert list(ids) == template.answer_prompt(prompt, template.empty_trace(), True)
        assert text.count("<think>") == text.count("</think>") == 1


@shapes
def test_without_a_generation_prompt_the_models_own_template_is_all(shape):
    own, template = SHAPES[shape](), built(shape)
    own.chat_template = unwrap(template.tokenizer.get_chat_template())
    held_on = {"enable_thinking": True, "thinking": True}
    for turns in (dialogue("a"), dialogue("a", "b", "c"), dialogue("a", "<think>b</think> c")):
        for off in ({}, {"enable_thinking": False}):
            text, _ = served(
                template.tokenizer, messages(turns), add_generation_prompt=False, **off
            )
            assert text == served(own, messages(turns), add_generation_prompt=False, **held_on)[0]


def test_a_switch_of_the_template_that_is_off_by_default_is_held_on():
    tokenizer = SHAPES["switch"]()
    before, _ = served(tokenizer, messages(dialogue("a")))
    assert before.endswith("assistant:</think>")
    template = make_template(tokenizer)
    assert template.prompt_text(example(dialogue("a"))).endswith("assistant:<think>")
    text, _ = served(tokenizer, messages(dialogue("a")), thinking=False)
    assert text.endswith("assistant:<think></think>")


def test_the_mode_that_a_template_writes_elsewhere_is_the_same_with_thinking_off():
    text, _ = served(built("modes").tokenizer, messages(dialogue("a")), enable_thinking=False)
    assert "mode: /think<" in text
    assert text.endswith("<|im_start|>assistant\n<think>\n</think>\n\n")


def test_servers_see_which_variables_the_template_reads():
    """vLLM passes on only those that Jinja calls undeclared."""
    for shape in SHAPES:
        source = built(shape).tokenizer.chat_template
        tree = _compile_jinja_template(source).environment.parse(source)
        found = jinja2.meta.find_undeclared_variables(tree)
        assert {"messages", "enable_thinking", "add_generation_prompt"} <= found
        assert not {name for name in found if name.startswith("nrt")} | ({"text", "kept"} & found)


# -- Earlier turns ---------------------------------------------------------------------------------

FORMS = {
    "in the text": {"content": "<think>one and one\n</think>\n\nIt is two."},
    "opened by the prompt": {"content": "one and one</think> It is two.\n"},
    "twice": {"content": "<think>a</think>No.<think>b</think>It is two."},
    "reasoning_content": {"content": "It is two.", "reasoning_content": "one and one"},
    "reasoning": {"content": "\n\nIt is two.", "reasoning": "one and one"},
    "thinking": {"content": "It is two.", "thinking": "one and one"},
    "both": {"content": "<think>a</think>It is two.", "reasoning_content": "one and one"},
    "none": {"content": "It is two.", "reasoning_content": None},
}


@shapes
@pytest.mark.parametrize("form", FORMS)
def test_earlier_reasoning_is_dropped(shape, form):
    template = built(shape)
    turns = dialogue("1 + 1?", "It is two.", "2 + 2?")
    plain = messages(turns)
    for off in ({}, {"enable_thinking": False}):
        expected = served(template.tokenizer, plain, **off)
        given_back = [plain[0], {"role": "assistant", **FORMS[form]}, plain[2]]
        assert served(template.tokenizer, given_back, **off) == expected
    assert template.prompt_ids(example(turns)) == served(template.tokenizer, plain)[1]


@shapes
@pytest.mark.parametrize("form", FORMS)
def test_training_on_rows_with_earlier_reasoning_sees_what_a_server_sees(shape, form, tmp_path):
    template = built(shape)
    turns = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", **FORMS[form]},
        {"role": "user", "content": "2 + 2?"},
    ]
    row = {"messages": [*turns, {"role": "assistant", "content": "four"}]}
    (read,) = load_examples([row]).examples
    assert template.prompt_ids(read) == served(template.tokenizer, turns)[1]


@FAST
@given(
    parts=st.lists(
        st.sampled_from(["<think>", "</think>", "a", " ", "\n", "\u2003", "<thi", "nk>", "b."]),
        max_size=8,
    )
)
@pytest.mark.parametrize("shape", ["chatml", "llama2", "qwen3"])
def test_any_earlier_turn_is_the_same_in_training_and_in_a_server(shape, parts):
    template = built(shape)
    turns = dialogue("1 + 1?", "".join(parts), "2 + 2?")
    text, ids = served(template.tokenizer, messages(turns))
    assert template.prompt_text(example(turns)) == text
    assert template.prompt_ids(example(turns)) == ids


def test_reasoning_that_was_cut_short_leaves_nothing():
    assert answered("Well. <think>one and", ("<think>", "</think>")) == "Well."
    assert answered("one and </think>", ("<think>", "</think>")) == ""
    assert answered(" two\n", ("<σ>", "</σ>")) == "two"


def test_turns_that_call_tools_keep_their_calls_and_lose_their_reasoning():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
    ]
    text, _ = served(built("qwen3").tokenizer, turns)
    assert "assistant\n\n<tool_call>\nadd\n</tool_call><|im_end|>" in text
    assert "<|im_start|>tool\n2<|im_end|>" in text
    assert text.count("<think>") == 1


def test_content_in_parts_is_left_to_the_template():
    tokenizer = make_template(tiny.byte_tokenizer()).tokenizer
    in_parts = "(m['content'] | map(attribute='text') | join)"
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", in_parts)
    turns = dialogue("a", "b", "c")
    parts = [{"role": r, "content": [{"type": "text", "text": text}]} for r, text in turns]
    assert served(tokenizer, parts)[0] == built("chatml").prompt_text(example(turns))


def test_the_plain_template_takes_content_in_parts_and_none():
    tokenizer = built("base").tokenizer
    turns = dialogue("a", "b", "c")
    parts = [
        {"role": role, "content": [{"type": "text", "text": half} for half in (text, "!")]}
        for role, text in turns
    ]
    joined = [{"role": role, "content": text + "!"} for role, text in turns]
    assert served(tokenizer, parts) == served(tokenizer, joined)
    for nothing in ({"content": None}, {"content": []}, {}):
        silent = [joined[0], {"role": "assistant", **nothing}, joined[2]]
        empty = [joined[0], {"role": "assistant", "content": ""}, joined[2]]
        assert served(tokenizer, silent) == served(tokenizer, empty)


@pytest.mark.parametrize("shape", ["chatml", *OWN_REASONING])
def test_the_last_turn_is_left_as_it_is(shape):
    """Who continues it, or trains on it, wants its reasoning."""
    tokenizer = built(shape).tokenizer
    turns = messages(dialogue("a", "<think>b</think> c"))
    text, _ = served(tokenizer, turns, add_generation_prompt=False)
    assert "b" in text.partition("assistant")[2]
    begun, _ = served(
        tokenizer,
        messages(dialogue("a", "It is")),
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert begun.endswith("It is")


@pytest.mark.parametrize("shape", ["chatml", "base", "llama3", "qwen3", "r1"])
def test_control_tokens_in_a_question_are_plain_text_where_transformers_is_asked_to(shape):
    """The documented exception: else a server reads them as the tokens themselves."""
    template = built(shape)
    turns = dialogue("what does </think> do?")
    ids = template.prompt_ids(example(turns))
    (close,) = template.boundary.close_ids
    assert close not in ids
    assert close in served(template.tokenizer, messages(turns))[1]
    made = template.tokenizer.apply_chat_template(
        messages(turns), add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True
    )
    assert tuple(made) == ids


# -- Wrapping --------------------------------------------------------------------------------------


@shapes
def test_a_saved_folder_is_taken_up_as_it_is(shape, tmp_path):
    template = make_template(SHAPES[shape](), trained=False)
    template.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    source, parts = loaded.chat_template, loaded.response_template
    again = make_template(loaded)
    assert again.boundary.mode == "existing"
    for name in ("open_text", "close_text", "close_ids", "gap"):
        assert getattr(again.boundary, name) == getattr(template.boundary, name)
    assert again.gap_ids == template.gap_ids
    assert again.end_ids == template.end_ids
    assert again.tokenizer.chat_template == source == template.tokenizer.chat_template
    assert again.tokenizer.response_template == parts == template.tokenizer.response_template
    for tag in ("<think>", "</think>"):
        (token,) = [t for t in loaded.added_tokens_decoder.values() if t.content == tag]
        assert not token.special


@shapes
def test_the_models_own_template_comes_out_whole(shape):
    own = SHAPES[shape]()
    if own.chat_template is not None:
        wrapped = built(shape).tokenizer.chat_template
        assert unwrap(wrapped) == own.chat_template.removesuffix("\n")
        assert unwrap(unwrap(wrapped)) == unwrap(wrapped)


def test_other_tags_and_a_text_boundary_start_from_the_models_own_template():
    tokenizer = make_template(tiny.byte_tokenizer()).tokenizer
    other = make_template(tokenizer, think=("<t>", "</t>"))
    assert other.prompt_text(example(dialogue("a"))).endswith("<|im_start|>assistant\n<t>")
    assert "think>" not in other.tokenizer.chat_template
    by_text = make_template(tokenizer, boundary="text")
    assert by_text.prompt_text(example(dialogue("a"))).endswith("<|im_start|>assistant\n")
    assert by_text.tokenizer.chat_template == tiny.CHATML
    assert by_text.tokenizer.response_template is None


@pytest.mark.parametrize(
    "start",
    ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}\n", "\n {#- c -#} y", "{{- 'z' }}"],
)
@pytest.mark.parametrize(
    "end", ["", "\n", "\n\n", "  ", "%", " {% if true %}x{% endif %}\n\n", "-"]
)
def test_white_space_at_both_ends_of_a_template_stays(start, end):
    own = start + "{% for m in messages %}{{ m['content'] }};{% endfor %}" + end
    before, after = (with_template(tiny.byte_tokenizer(), own) for _ in range(2))
    make_template(after)
    turns = messages(dialogue("a"))
    assert served(after, turns)[0] == served(before, turns)[0] + "<think>"


def test_tags_that_were_special_are_so_no_longer(tmp_path):
    tokenizer = tiny.byte_tokenizer()
    tags = [AddedToken(tag, special=True, rstrip=True) for tag in ("<think>", "</think>")]
    tokenizer.add_tokens(tags)
    template = make_template(tokenizer)
    assert template.boundary.mode == "existing"
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    (close,) = template.boundary.close_ids
    assert again.decode([close], skip_special_tokens=True) == "</think>"
    assert again.added_tokens_decoder[close].rstrip


# -- Reasoning and answer apart --------------------------------------------------------------------


def parsed(tokenizer, written, **kwargs):
    """What transformers makes of a model's text after a prompt."""
    prompt = tokenizer.apply_chat_template(
        messages(dialogue("a <think> b", "c", "d")), add_generation_prompt=True, **kwargs
    )["input_ids"]
    return tokenizer.parse_response(written, prefix=prompt)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "words"])
def test_transformers_tells_reasoning_from_answer(shape):
    template = built(shape)
    tokenizer, b = template.tokenizer, template.boundary
    end = tokenizer.decode([template.end_ids[0]])
    whole = parsed(tokenizer, f"one and one\n{b.close_text}{b.gap}It is two.{end}")
    assert whole == {
        "role": "assistant",
        "reasoning_content": "one and one",
        "content": "It is two.",
    }
    cut = parsed(tokenizer, "one and")
    assert cut == {"role": "assistant", "reasoning_content": "one and", "content": ""}
    for ended in (f"one and\n{end}", f"one and{end}{end}"):  # the turn, inside the trace
        assert parsed(tokenizer, ended) == cut
    at_once = parsed(tokenizer, f"It is two.{end}{end}", enable_thinking=False)
    assert at_once == {"role": "assistant", "content": "It is two."}


def test_what_a_tokenizer_says_of_its_responses_stays():
    tokenizer = tiny.byte_tokenizer()
    tokenizer.response_template = {"start_anchor": "x", "fields": {"content": {}}}
    assert make_template(tokenizer).tokenizer.response_template["start_anchor"] == "x"


def test_a_template_that_refuses_a_system_turn_still_does():
    template = make_template(SHAPES["gemma"](), system_prompt="S")
    assert template.prompt_text(example(dialogue("a"))) == (
        "<s><start_of_turn>user\nS\n\na<end_of_turn>\n<start_of_turn>model\n<think>"
    )


def test_a_tool_call_without_content_stays_one():
    """Templates ask whether there is content."""
    source = (
        "{% for m in messages %}{% if 'content' in m %}{{ m['role'] + ':' + m['content'] }}"
        "{% else %}{{ 'calls ' + m['tool_calls'][0]['function']['name'] }}{% endif %};{% endfor %}"
    )
    template = make_template(with_template(tiny.byte_tokenizer(), source))
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "sum", "arguments": {}}}]}
    turns = [{"role": "user", "content": "?"}, call, {"role": "tool", "content": "4"}]
    assert served(template.tokenizer, turns)[0] == "user:?;calls sum;tool:4;<think>"


def test_of_several_chat_templates_one_is_saved_and_it_says_so(capsys):
    tokenizer = with_template(tiny.byte_tokenizer(), None)
    tokenizer.chat_template = {"default": tiny.CHATML, "tool_use": tiny.CHATML + "!"}
    make_template(tokenizer)
    assert "tool_use will not be saved" in capsys.readouterr().err
    assert isinstance(tokenizer.chat_template, str)
