"""Small real parts for tests: tokenizers trained in memory and random two-layer models."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "What is the sum of two and two? The answer is four, as anyone can see.",
    "Question: name a colour of the rainbow. Response: red, or blue, or green.",
    "0 1 2 3 4 5 6 7 8 9 10 11 12 + - = ( ) think about it step by step",
] * 4


def byte_tokenizer(chat: bool = True, think: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 330 tokens; with ``chat`` a ChatML template, with ``think`` tags."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    if chat:
        tokenizer.chat_template = CHATML
    if think:
        tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


_COMMON = dict(num_hidden_layers=2, num_attention_heads=4, vocab_size=352)
_WIDE = dict(
    hidden_size=32, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=512
)
_IDS = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)


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
