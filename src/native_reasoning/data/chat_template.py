"""The chat template that training and servers share, and what separates prompt, trace and answer.

The chat template is one Jinja text, saved with the model. The model's own stays whole inside it.
Before it runs, earlier assistant turns are made what they answered, without their reasoning; after
it, the trace is opened, or, with ``enable_thinking=False``, opened and closed: the empty trace that
training forwards too. Own switches of the template are held on: off is ours alone.

The boundary is a pair of think tokens that the tokenizer has, a pair that is added to it, or a text
cut at a place where no vocabulary item can span it. template.py encodes rows with both.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import TemplateError as JinjaError
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from native_reasoning.config.errors import TemplateError, warn

#: For base models that come without a chat template; saved with the model. Content may be text, a
#: list of parts with text, or nothing.
PLAIN_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set text = message['content'] or '' -%}"
    "{%- if text is not string -%}"
    "{%- set text = text | map(attribute='text') | join -%}"
    "{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{ 'Question: ' + text + '\\n\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ 'Response:\\n' + text + (eos_token or '') + '\\n\\n' }}"
    "{%- else -%}{{ text + '\\n\\n' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Response:\\n' }}{%- endif -%}"
)

# Whatever white space the model's own template writes or trims at its start stays as it is: it
# begins on a line of its own, after a block. Plain Jinja, because servers that are not written in
# Python read it too. ``wrap`` fills in what stands between at signs.
_BEFORE = """\
{#- native-reasoning: earlier turns without reasoning, and the trace opened -#}
{%- set nrt_thinking = not (@OFF@) -%}@HELD_ON@
{%- set nrt_opening = @OPENING@ if nrt_thinking else @EMPTY@ -%}
{%- set nrt = namespace(turns=[]) -%}
{%- for turn in messages -%}
{%- set kept = turn -%}
{%- set text = turn['content'] if turn['content'] is not string
else turn['content'].split(@CLOSE@)[-1].split(@OPEN@)[0] | trim -%}
{%- if turn['role'] == 'assistant' and not loop.last -%}
{%- if 'content' not in turn -%}
{%- set kept = {'role': 'assistant', 'tool_calls': turn['tool_calls']} -%}
{%- elif turn['tool_calls'] -%}
{%- set kept = {'role': 'assistant', 'content': text, 'tool_calls': turn['tool_calls']} -%}
{%- else -%}
{%- set kept = {'role': 'assistant', 'content': text} -%}
{%- endif -%}
{%- endif -%}
{%- set nrt.turns = nrt.turns + [kept] -%}
{%- endfor -%}
"""
_LAST_LINE = "{%- set messages = nrt.turns %}\n"
_AFTER = "{{ nrt_opening if add_generation_prompt else '' }}"
_MARK = _BEFORE.partition("\n")[0]

#: What templates call the switch between thinking and not.
_SWITCHES = ("enable_thinking", "thinking")

_ANCHOR = "(?="


def render(
    tokenizer: PreTrainedTokenizerFast, turns: Sequence[tuple[str, str]], generate: bool = True
) -> str:
    """The chat template's text of some turns. Raises TemplateError if it refuses them."""
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            messages, tokenize=False, add_generation_prompt=generate
        )
    except (JinjaError, TypeError, ValueError) as error:
        raise TemplateError(
            f"the chat template refuses the turns: {error}",
            why="the prompt cannot be written",
            fix="mend the order of the turns, or set chat_template_path",
        ) from None


def unwrap(source: str) -> str:
    """A model's own chat template, out of one that ``wrap`` made; any other as it is."""
    if not source.startswith(_MARK):
        return source
    return source.partition(_LAST_LINE)[2].removesuffix("\n").removesuffix(_AFTER)


def wrap(tokenizer: PreTrainedTokenizerFast, think: tuple[str, str]) -> tuple[str, str]:
    """Puts a tokenizer's chat template into what is described above. Returns the white space that
    stands after the opening tag, and after the closing one.

    Wrapping once more changes nothing. Raises TemplateError if the template refuses a question.
    """
    if isinstance(tokenizer.chat_template, dict):
        others = sorted(tokenizer.chat_template.keys() - {"default"})
        warn(f"the tokenizer has several chat templates: {', '.join(others)} will not be saved")
    own = unwrap(tokenizer.get_chat_template())
    tokenizer.chat_template = _whole(own, think, "", "")
    prompt = render(tokenizer, [("user", "?")])
    opened = prompt.rstrip().endswith(think[0])
    space = "\n" if _writes(own, think[0] + "\n") else ""
    if opened:
        space = prompt[len(prompt.rstrip()) :]
    gap = "\n\n" if space or _writes(own, think[1] + "\n\n") else ""
    opening = "" if opened else think[0] + space
    tokenizer.chat_template = _whole(own, think, opening, opening + think[1] + gap)
    return space, gap


def _whole(own: str, think: tuple[str, str], opening: str, empty: str) -> str:
    """``own`` between what goes before and after it."""
    read = [name for name in _SWITCHES if re.search(rf"(?<![\w.'\"]){name}\b(?!['\"])", own)]
    switches = dict.fromkeys((_SWITCHES[0], *read))
    texts = {
        "OFF": " or ".join(f"{name} is defined and {name} is false" for name in switches),
        "HELD_ON": "".join(f"\n{{%- set {name} = true -%}}" for name in read),
        "OPEN": _quoted(think[0]),
        "CLOSE": _quoted(think[1]),
        "OPENING": _quoted(opening),
        "EMPTY": _quoted(empty),
    }
    before = re.sub("@([A-Z_]+)@", lambda found: texts[found[1]], _BEFORE)
    return before + _LAST_LINE + own.removesuffix("\n") + _AFTER  # as Jinja drops it


def _quoted(text: str) -> str:
    """A text as Jinja writes it; a newline as its escape, which trim_blocks leaves alone."""
    return json.dumps(text, ensure_ascii=False)


def _writes(source: str, text: str) -> bool:
    """Whether a chat template's source writes ``text``, with newlines as such or as ``\\n``."""
    return text in source or text.replace("\n", "\\n") in source


def answered(text: str, think: tuple[str, str]) -> str:
    """What an earlier assistant turn answered: what follows its reasoning, without white space
    around it. The chat template does the same.

    >>> answered("<think>two and two</think>\\n\\nIt is four.\\n", ("<think>", "</think>"))
    'It is four.'
    """
    return text.split(think[1])[-1].split(think[0])[0].strip()


def split_responses(
    tokenizer: PreTrainedTokenizerFast, think: tuple[str, str], ends: Sequence[str]
) -> None:
    """Tells transformers (its pipelines, ``transformers serve``) how to part reasoning from answer
    in what a model writes after such a prompt; ``ends`` end a turn. What a tokenizer says itself
    stays."""
    opening, closing = map(re.escape, think)
    try:
        known = tokenizer.response_template or {}
    except AttributeError:  # an older transformers, as verl asks for, has no such thing
        return
    if known and not known.get("start_anchor_pattern", "").startswith(_ANCHOR):
        return
    end = "|".join(map(re.escape, ends))
    tokenizer.response_template = {
        "start_anchor_pattern": f"{_ANCHOR}{opening})",  # before the prompt's last opening tag
        "defaults": {"role": "assistant", "content": ""},
        "fields": {
            "reasoning_content": {
                "open_pattern": rf"{opening}\s*",
                "close_pattern": rf"\s*(?:{closing}|{end})\s*",  # or the turn ended inside it
            },
            "content": {"close_pattern": rf"\s*(?:{end})"},
        },
    }


# -- What a template writes around the turns, which depends on their roles alone ------------------

#: Texts one after the other, each with whether it is the user's.
Pieces = list[tuple[str, bool]]


@dataclass(frozen=True)
class Frame:
    """The ``text`` of turns of some roles with a mark for each turn, the ``parts`` between the
    marks, one more than there are turns, and the turns in the ``order`` in which they stand."""

    tokenizer: PreTrainedTokenizerFast
    marks: tuple[tuple[str, str], ...]
    text: str
    parts: tuple[str, ...]
    order: tuple[int, ...]

    def pieces(self, contents: Sequence[str]) -> Pieces:
        """The template's text with these turns in it."""
        pieces = [(self.parts[0], False)]
        for i, after in zip(self.order, self.parts[1:], strict=True):
            pieces += [(self._shown(i, contents[i]), True), (after, False)]
        return pieces

    def _shown(self, i: int, content: str) -> str:
        """Turn i's text as the chat template writes it: some strip white space around it."""
        if content == content.strip():
            return content
        role, mark = self.marks[i]
        before, _, after = self.text.partition(mark)
        text = render(self.tokenizer, [*self.marks[:i], (role, content), *self.marks[i + 1 :]])
        shown = text[len(before) : len(text) - len(after)]
        framed = text == before + shown + after
        return shown if framed and shown.strip() == content.strip() else content


def make_frame(tokenizer: PreTrainedTokenizerFast, roles: Sequence[str]) -> Frame:
    """Renders turns of these roles.

    Raises TemplateError if the chat template refuses them, leaves one out, or writes one twice.
    """
    marks = tuple((role, f"\ue000{i}\ue001") for i, role in enumerate(roles))
    text = render(tokenizer, marks)
    parts = re.split("\ue000(\\d+)\ue001", text)  # text, turn, text, turn, ..., text
    order = tuple(int(turn) for turn in parts[1::2])
    if sorted(order) != [*range(len(marks))]:
        raise TemplateError(
            "the chat template leaves out a turn, or writes one twice",
            why="the model would not see the question as it is",
            fix="set chat_template_path to a template that shows every turn once",
        )
    return Frame(tokenizer, marks, text, tuple(parts[::2]), order)


# -- The boundary of trace and answer, chosen for a tokenizer and written into it -----------------


@dataclass(frozen=True)
class Boundary:
    """What opens and closes a trace.

    ``open_text`` ends the prompt ("" in text mode). ``close_ids`` are the closing tag's tokens, one
    in the token modes. ``gap`` is fixed white space after it, forwarded and never scored.
    ``lead`` is white space that belongs to the answer's first token (text mode).
    """

    mode: str
    open_text: str
    close_text: str
    close_ids: tuple[int, ...]
    gap: str = ""
    lead: str = ""

    @property
    def closes_by_text(self) -> bool:
        """Whether a trace closes when its text, not its last token, is the tag."""
        return self.mode == "text"

    def warn_of_servers(self) -> None:
        """Says what servers cannot do with a boundary that is text."""
        if self.closes_by_text:
            warn(
                f"the boundary is the text {self.close_text!r}: pipelines and servers return "
                "trace and answer as one text, and enable_thinking does nothing. Models for "
                "servers: --boundary auto"
            )


# -- Choosing one ----------------------------------------------------------------------------------


def existing_pair(tokenizer: PreTrainedTokenizerBase, think: tuple[str, str]) -> bool:
    """Whether both think texts are single tokens of the tokenizer."""
    vocabulary = tokenizer.get_vocab()
    return all(text in vocabulary for text in think)


def token_boundary(
    tokenizer: PreTrainedTokenizerFast, boundary: str, think: tuple[str, str], trained: bool
) -> Boundary:
    """The existing think tokens, or new ones; the chat template is made to open the trace, and to
    be what servers need.

    A pair that the model knows (``trained``) is "existing" whether or not "new" was asked for.
    """
    exists = existing_pair(tokenizer, think)
    if boundary == "existing" and not exists:
        raise TemplateError(
            f"the tokenizer has no tokens {think[0]} and {think[1]}",
            why="boundary 'existing' needs them",
            fix="boundary auto adds them; think_open and think_close name others",
        )
    mode = "existing" if exists and (trained or boundary == "existing") else "new"
    known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    for text in think:
        token = known.get(text, AddedToken(text, normalized=False))
        if text not in known or token.special:
            # else servers that skip special tokens would remove the tags from their output
            token.special = False
            tokenizer.add_tokens([token])  # type: ignore[list-item]
    space, gap = wrap(tokenizer, think)
    close = tokenizer.get_vocab()[think[1]]
    return Boundary(mode, think[0] + space, think[1], (close,), gap=gap)


def text_boundary(tokenizer: PreTrainedTokenizerFast, text: str) -> Boundary:
    """A text after which " answer" follows, if no token of the vocabulary spans the two. The chat
    template is the model's own."""
    tokenizer.chat_template = unwrap(tokenizer.get_chat_template())
    tokenizer.response_template = None
    cut = text[-1:] + " "
    spanning = [
        token for token in tokenizer.get_vocab() if cut in token.replace("Ġ", " ").replace("▁", " ")
    ]
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    # byte-level vocabularies write printable ASCII as it is, a newline as something else
    plain = text.isascii() and text[-1:].isprintable() and text == text.rstrip() != ""
    if not plain or spanning or decode(tokenizer, ids) != text:
        seen = f", such as {spanning[0]!r}" if spanning else ""
        raise TemplateError(
            f"boundary_text {text!r} cannot be cut safely{seen}",
            why="a token that spans the cut would make scored ids differ from sampled ids",
            fix="end it with a letter that no token has before a space, or use boundary auto",
        )
    return Boundary("text", "", text, ids, lead=" ")


# -- What a tokenizer knows ------------------------------------------------------------------------


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Ids as text, special tokens included."""
    return str(tokenizer.decode(list(ids)))


def control_ids(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> frozenset[int]:
    """Added tokens that mean something: not runs of white space, not "unknown"."""
    added = tokenizer.added_tokens_decoder.items()
    control = {i for i, token in added if token.content.strip() and i != tokenizer.unk_token_id}
    return frozenset(control | {*end_ids})


def first_id(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The token that the tokenizer puts before every text; None where it puts none."""
    ids, plain = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (True, False))
    return None if ids[:1] == plain[:1] else ids[0]


def find_end_ids(tokenizer: PreTrainedTokenizerFast, extra: Sequence[int]) -> tuple[int, ...]:
    """The token that the chat template writes after an assistant turn, then EOS, then ``extra``."""
    mark = "\ue000"
    rendered = render(tokenizer, [("user", "?"), ("assistant", mark)], generate=False)
    _, found, tail = rendered.rpartition(mark)
    ids = tokenizer(tail if found else "", add_special_tokens=False)["input_ids"]
    ends = [i for i in ids[:1] if i in tokenizer.added_tokens_decoder]
    ends += [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not ends:
        raise TemplateError(
            "the tokenizer has no end token",
            why="the answer's end is part of what is scored",
            fix="set tokenizer.eos_token, or a chat template that ends assistant turns",
        )
    return tuple(dict.fromkeys([*ends, *(i for i in extra if i < len(tokenizer))]))


def without_added_tokens(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer that recognises no added token."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"], state["post_processor"] = [], None
    return Tokenizer.from_str(json.dumps(state))
