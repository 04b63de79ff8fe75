"""A chat template for a model that has none, out of tokens the model already knows.

New tokens would need new rows in the embedding, and an adapter does not train those: the token
that ends an answer would stay as random as it began. So ChatML only where its tokens exist, else
roles as plain headings, and the model's own end token after an answer.
"""

import json
from collections.abc import Mapping

from tokenizers import Tokenizer

from rung.tokens.special import CHAT_TEMPLATE, SPECIAL_TOKENS

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_HEADINGS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Assistant:\\n' }}"
    "{% generation %}{{ message['content'] + END }}{% endgeneration %}{{ '\\n\\n' }}"
    "{% else %}{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)


def fallback_template(bpe: Tokenizer, named: Mapping[str, str]) -> tuple[str, str]:
    """(template, what it is in words) for a tokenizer with these named tokens."""
    special = {token.content for token in bpe.get_added_tokens_decoder().values() if token.special}
    if special.issuperset(SPECIAL_TOKENS):
        return CHAT_TEMPLATE, "Rung's, as it had none"
    begin = _begin(bpe, special)
    if special.issuperset(CHATML_TOKENS):
        return begin + _CHATML, "ours, as it had none: ChatML, whose tokens it knows"
    end = json.dumps(named["eos_token"])
    return (
        begin + _HEADINGS.replace("END", end),
        f"ours, as it had none: roles as headings, {named['eos_token']} ends an answer",
    )


def _begin(bpe: Tokenizer, special: set[str]) -> str:
    """What the tokenizer itself writes before a text: a chat begins as the model's texts did."""
    first = bpe.encode("a").tokens
    known = len(first) > 1 and first[0] in special
    return "{{ " + json.dumps(first[0]) + " }}" if known else ""
