"""Small real parts for tests: tokenizers trained in memory and random two-layer models."""

import json

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from native_reasoning.config.checks import CHANGEABLE

torch.set_num_threads(1)  # tiny matrices are slower on several

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "What is the sum of two and two? The answer is four, as anyone can see.",
    "Question: name a colour of the rainbow. Response: red, or blue, or green.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 + - = ( ) think about it step by step",
] * 4


def folded(settings: dict) -> dict:
    """Settings of a run, those of the objective in their mapping."""
    named = {name: value for name, value in settings.items() if name in CHANGEABLE}
    others = {name: value for name, value in settings.items() if name not in named}
    return {**others, "objective": {**others.get("objective", {}), **named}} if named else others


def byte_tokenizer(
    chat: bool = True, think: bool = False, corpus: list[str] = CORPUS
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 330 tokens; with ``chat`` a ChatML template, with ``think`` tags."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if chat:
        tokenizer.chat_template = CHATML
    if think:
        tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


#: Writes thinking as Qwen3's template does: a newline inside the tags, two after them.
QWEN3 = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'].lstrip('\n') }}"
    "{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: Opens the thinking block itself, as DeepSeek-R1's does.
R1 = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
#: Strips every turn, refuses system turns and turns out of order, as Llama 2's and Gemma's do.
STRICT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)


def _fast(core: Tokenizer, chat_template: str | None, **tokens: str) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, clean_up_tokenization_spaces=False, **tokens
    )
    made.chat_template = chat_template
    return made


def metaspace_tokenizer(
    prepend: str = "first", chat_template: str | None = STRICT
) -> PreTrainedTokenizerFast:
    """BPE with ▁ for spaces and bytes for what is unknown, as Llama 2's: no token is a tag."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    bpe.train_from_iterator(
        [line for text in CORPUS for line in text.split(". ")],
        trainers.BpeTrainer(vocab_size=200, show_progress=False, max_token_length=6),
    )
    model = json.loads(bpe.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: i for i, token in enumerate([*first, *model["vocab"]])}
    merges = [tuple(merge) for merge in model["merges"]]
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _fast(core, chat_template, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per word between spaces; every other word is unknown."""
    words = sorted({word for text in CORPUS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<end>", "Question:", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(core, chat_template, eos_token="<end>", unk_token="<unk>")


def unigram_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A Unigram model with ▁ before words, as SentencePiece trains them."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<unk>", "<s>", "</s>"],
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    return _fast(core, chat_template, eos_token="</s>", unk_token="<unk>")


def whitespace_tokenizer() -> PreTrainedTokenizerFast:
    """``byte_tokenizer`` with added tokens for runs of spaces, as GPT-NeoX's has."""
    made = byte_tokenizer()
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in (2, 3, 4)])
    return made


_COMMON = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 352}
_WIDE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def tiny_model(kind: str = "llama", seed: int = 0, **config) -> PreTrainedModel:
    """A random model of about 40,000 parameters whose padded vocabulary has 352 rows."""
    torch.manual_seed(seed)
    if kind == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(n_layer=2, n_head=4, n_embd=32, n_positions=512, vocab_size=352, **_IDS)
        )
    elif kind == "mistral":
        made = MistralForCausalLM(
            MistralConfig(**_COMMON, **_WIDE, **_IDS, **{"sliding_window": 8, **config})
        )
    elif kind == "lfm2":  # its convolution layers keep a state that cannot be repeated
        layers = {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
        made = Lfm2ForCausalLM(Lfm2Config(**_COMMON, **_WIDE, **_IDS, **layers, **config))
    elif kind == "gemma2":  # every other layer has a window; logits get a soft cap
        own = {"head_dim": 8, "sliding_window": 8}
        own |= {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        made = Gemma2ForCausalLM(Gemma2Config(**_COMMON, **_WIDE, **_IDS, **{**own, **config}))
    elif kind == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**_COMMON, **_WIDE, **_IDS, head_dim=8, **config))
    else:
        made = LlamaForCausalLM(LlamaConfig(**_COMMON, **_WIDE, **_IDS, **config))
    with torch.no_grad():  # wider than at initialisation, so that probabilities differ
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return made


QA = [
    {"question": f"What is {a} + {b}?", "answer": f"The sum is {a + b}."}
    for a in range(4)
    for b in range(3)
]
