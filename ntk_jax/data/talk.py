"""A message of a conversation in the ways that people write it down, as `{"role", "content"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ROLES = ("system", "user", "assistant", "tool", "developer", "function")
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def turn_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with the keys of OpenAI: those of ShareGPT (`from`, `value`) become these, a role in capitals is
    written small, a speaker's name of ShareGPT becomes a role, and a content in parts is one text where all of them are
    text. A message of no known form, and one that is so already, comes back as it is. Nulls count as absent, and a
    message of tool calls alone has no words."""
    full = {key: value for key, value in message.items() if value is not None}
    if "from" in full and "value" in full and not ({"role", "content"} & set(full)):
        speaker = full["from"].strip().lower() if isinstance(full["from"], str) else full["from"]
        role = _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
        return {"role": role, "content": _joined(full["value"])}
    if "content" not in full and full.get("tool_calls"):
        return turn_of({**message, "content": ""})
    role, content = message.get("role"), message.get("content")
    small = role.lower() if isinstance(role, str) and role.lower() in _ROLES else role
    small = _SPEAKERS.get(small, small) if isinstance(small, str) else small
    whole = _joined(content)
    if small == role and whole is content:
        return message
    return {**message, "role": small, "content": whole}


def _joined(content: Any) -> Any:
    if not isinstance(content, list) or not content:
        return content
    texts = [part.get("text") if _is_text(part) else part for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else content


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type", "text") == "text"
