"""The middle tier's tokenizer: a byte-level BPE, trained by a seeded script on the documents.

Words with the space before them, digits one by one. ``<think>`` and ``</think>`` are added tokens
like those of reasoning models: single ids that are not special. White space at both ends of a text,
and around the tags, is dropped and one space put in front, so that a word is the same token
wherever it stands, and a prompt with an answer tokenises exactly as a document does.
"""

import sys
from pathlib import Path

from tasks import documents
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from lab.tasks import END
from lab.tokenizer import PAD, with_tags

MODEL_MAX_LENGTH = 192
WORDS = r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"


def build_tokenizer(
    size: int = 800, count: int = 20_000, seed: int | str = "vocabulary"
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``size`` + 2 tokens from ``count`` documents; as many threads as
    there are give the same merges."""
    core = Tokenizer(BPE())
    core.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Prepend(" ")])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (f"{d.question} {d.trace} {d.answer}" for d in documents(count, seed))
    core.train_from_iterator(texts, trainer)
    return with_tags(core, MODEL_MAX_LENGTH)
