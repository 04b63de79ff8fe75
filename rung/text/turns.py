"""Conversations written as one text: "### Human: Hi ### Assistant: Hello!" and HH-RLHF's."""

import re

from rung.text.messages import Message

# HH-RLHF sets "Human:" at the start of a paragraph; the other style marks it with ###, anywhere.
_PLAIN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_MARKED = re.compile(r"(?:^|\s+)###\s*(Human|User|Instruction|Assistant|Response):[ ]?")
_ASSISTANT = ("Assistant", "Response")


def parse_turns(text: str) -> list[Message] | None:
    """Messages of a text that begins with a turn in either style; None where it does not.

    Two turns of one side in a row are one: an answer may itself say "Assistant:".
    """
    for style in (_PLAIN, _MARKED):
        pieces = style.split(text)  # text before the first turn, then role, content, role ...
        if len(pieces) >= 3 and not pieces[0].strip():
            return _messages(pieces)
    return None


def _messages(pieces: list[str]) -> list[Message]:
    messages: list[Message] = []
    for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "assistant" if name in _ASSISTANT else "user"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n\n" + content.strip()
        else:
            messages.append({"role": role, "content": content.strip()})
    return messages
