"""The lab's word-level tokenizer, built from the words of tasks.py.

It is an ordinary ``PreTrainedTokenizerFast``: one token per word, words separated by spaces.
``<think>`` and ``</think>`` are added tokens like those of reasoning models: single ids that are
not special, so that ``skip_special_tokens`` keeps them.
"""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from lab.tasks import CLOSE, DEMO, END, LONGEST, OPEN, Family, words

PAD, UNKNOWN = "<pad>", "<unk>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ message['content'] }}" + END + "{% else %}"
    "{{ message['content'] }} "
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{% if enable_thinking is defined and not enable_thinking %}" + OPEN + CLOSE + "{% else %}"
    "" + OPEN + "{% endif %}"
    "{% endif %}"
)
"""Turns one after the other; a generation prompt opens the thinking block, or with
``enable_thinking=False`` splices an empty one. The text tokenises exactly as the pre-training
documents do, because spaces only separate words."""


def build_tokenizer(
    families: Sequence[Family] = tuple(DEMO.values()), longest: int = LONGEST
) -> PreTrainedTokenizerFast:
    """The tokenizer of these families; ``save_pretrained`` writes it as an ordinary folder.

    ``longest`` is in tokens. Decoding joins words with one space.
    """
    vocabulary = {word: i for i, word in enumerate([PAD, UNKNOWN, END, *words(families)])}
    core = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = WhitespaceSplit()
    return with_tags(core, longest, unk_token=UNKNOWN)


def with_tags(core: Tokenizer, longest: int, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer with the two tags as single ids, the chat template, and padding on the left that
    is not the end token. ``core`` has a token for each of ``PAD``, ``END`` and ``special``."""
    core.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in (OPEN, CLOSE)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        chat_template=CHAT_TEMPLATE,
        **special,
    )
