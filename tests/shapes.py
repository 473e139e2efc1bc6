"""Chat templates in the style of families of models, and tokenizers that know their tokens."""

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

import tiny

#: Headers, turns trimmed, the start of the text written by the template.
LLAMA3 = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n"
    "{{- message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}\n"
    "{%- endif %}\n"
)
#: No system turn, turns alternate, the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}\n"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set who = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + who + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
#: Reads reasoning itself, shows that of the turns after the last question, and has a switch.
QWEN3 = r"""{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- 'Call tools as <tool_call>{"name": ..., "arguments": ...}</tool_call>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n' + call.function.name + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"""
#: Does not think unless it is asked to, and closes at once otherwise.
SWITCH = (
    "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}"
    "{% if thinking %}{{ '<think>' }}{% else %}{{ '</think>' }}{% endif %}{% endif %}"
)
#: A mode in the system turn, as SmolLM3's.
MODES = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{{- '<|im_start|>system\nmode: ' + ('/think' if enable_thinking else '/no_think') }}"
    "{{- '<|im_end|>\n' -}}"
    + tiny.CHATML.replace("assistant\n' }}{% endif %}", "assistant\n' }}")
    + "{%- if not enable_thinking -%}{{ '<think>\n\n</think>\n' }}{%- endif -%}{%- endif -%}"
)


def with_template(
    tokenizer: PreTrainedTokenizerFast, source: str | None
) -> PreTrainedTokenizerFast:
    """The tokenizer with this chat template."""
    tokenizer.chat_template = source
    return tokenizer


def llama3() -> PreTrainedTokenizerFast:
    """A base-size byte tokenizer with Llama 3's control tokens."""
    made = with_template(tiny.byte_tokenizer(), LLAMA3)
    made.bos_token = "<|endoftext|>"
    names = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    made.add_tokens([AddedToken(name, special=True) for name in names])
    return made


def gemma() -> PreTrainedTokenizerFast:
    """SentencePiece's ▁, with Gemma's control tokens."""
    made = with_template(tiny.metaspace_tokenizer(), GEMMA)
    names = ("<start_of_turn>", "<end_of_turn>")
    made.add_tokens([AddedToken(name, special=True) for name in names])
    return made


def tags_with_white_space() -> PreTrainedTokenizerFast:
    """The tags take the white space after them."""
    made = with_template(tiny.byte_tokenizer(), QWEN3)
    made.add_tokens([AddedToken(t, rstrip=True, normalized=False) for t in ("<think>", "</think>")])
    return made


#: How each is made anew.
SHAPES = {
    "chatml": tiny.byte_tokenizer,
    "base": lambda: tiny.byte_tokenizer(chat=False),
    "base with ▁": lambda: tiny.metaspace_tokenizer(chat_template=None),
    "llama3": llama3,
    "gemma": gemma,
    "llama2": tiny.metaspace_tokenizer,
    "qwen3": lambda: with_template(tiny.byte_tokenizer(think=True), QWEN3),
    "qwen3 with ▁": lambda: with_template(tiny.metaspace_tokenizer("always"), QWEN3),
    "qwen3 with ▁ at the start": lambda: with_template(tiny.metaspace_tokenizer("first"), QWEN3),
    "qwen3, tags with white space": tags_with_white_space,
    "r1": lambda: with_template(tiny.byte_tokenizer(think=True), tiny.R1),
    "switch": lambda: with_template(tiny.byte_tokenizer(), SWITCH),
    "modes": lambda: with_template(tiny.byte_tokenizer(think=True), MODES),
    "words": tiny.word_tokenizer,
}
