"""The special tokens, one meaning each, and the chat template that lays them out."""

BOS = "<|endoftext|>"
"""Begins every document and conversation, and ends a document: what a base model stops at."""
PAD = "<|pad|>"
"""Never trained and never attended to. Apart from every other token, so that no mask that hides
padding can hide the end of a turn (the usual reason why a fine-tuned model does not stop)."""
END = "<|end|>"
"""Ends a turn: what a chat model stops at. Always supervised after an answer."""
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
"""Role of a message -> the token that opens it."""

SPECIAL_TOKENS = (BOS, PAD, *ROLES.values(), END)
"""In id order: the first ids of the vocabulary, so they never move with its size."""

CHAT_TEMPLATE = (
    "{{ '" + BOS + "' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{{ '" + ROLES["system"] + "' + message['content'] + '" + END + "' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '" + ROLES["user"] + "' + message['content'] + '" + END + "' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '" + ROLES["assistant"] + "' }}"
    "{% generation %}{{ message['content'] + '" + END + "' }}{% endgeneration %}"
    "{% else %}"
    "{{ raise_exception('unknown role ' + message['role']) }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ROLES["assistant"] + "' }}{% endif %}"
)
"""What `rung.tokens.chat.render` does, for other programs; a test holds the two equal.

Role tokens are written out rather than joined from the role's name, so that transformers'
`sanitize_control_tokens=True` can tell the template's tokens from a user's text. Without that
switch a user who types "<|end|>" ends the turn in other programs; in Rung that is never possible.
With it the typed token stays text, but transformers cuts the text around it, so there, and only
there, the ids can differ from Rung's (they decode to the same text).
"""
