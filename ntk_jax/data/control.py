"""Control tokens: those of a chat template are real, those that a record's text spells stay text.

A control token (`<|im_end|>`, `<s>`) says who speaks and where a text ends. A tokenizer takes every string that spells
one for the real thing, so that text from the web could open turns of its own. Here each one in a record's text is
broken by a mark before the template is applied, and a text that begins or ends with a part of one, which another text
or the template may go on with, gets a mark there. Whatever is whole afterwards was written by the template, and gets
another name, under which a copy of the tokenizer knows it; then the marks are taken out. Marks and names are made of
noncharacters of Unicode, which no text holds.
"""

from __future__ import annotations

import itertools
import json
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.errors import UserError

_OPENS, _CLOSES, _MARK = "\ufdd0", "\ufdd1", "\ufdd2"
_DIGITS = [chr(code) for code in range(0xFDE0, 0xFDF0)]
_NONCHARACTERS = re.compile("[\ufdd0-\ufdef]")
_THOUGHT = re.compile(r"</?think(ing)?>")  # a part of what an assistant writes: it opens no turn
_BARS = re.compile(r"<[|\uff5c].+[|\uff5c]>", re.DOTALL)  # DeepSeek's turns, which are not marked as special


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text: ids, and the characters [start, stop) that each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]

    def before(self, place: int) -> int:
        """How many tokens lie wholly before a place in the text. A token that reaches over it does not: what follows
        is a text to be predicted, and its first token is the one that holds its first character."""
        for number, (start, stop) in enumerate(self.offsets):
            if stop > place or start >= place:
                return number
        return len(self.ids)

    def first(self, place: int) -> int:
        """The number of the first token that begins at a place in the text or behind it."""
        return next((n for n, (start, _) in enumerate(self.offsets) if start >= place), len(self.ids))


class Codec:
    """A tokenizer for texts in which the template's control tokens have names of their own."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            kind = type(tokenizer).__name__
            raise UserError(f"{kind} does not say where its tokens lie in the text; take the model's tokenizer.json")
        tree = json.loads(backend.to_str())
        named = set(getattr(tokenizer, "all_special_tokens", ()))
        controls = [
            token["content"]
            for token in tree["added_tokens"]
            if (token["special"] or token["content"] in named or _BARS.fullmatch(token["content"]))
            and not _THOUGHT.fullmatch(token["content"])
            and not token["single_word"]  # it is found between words only, and a name is no word
        ]
        self._names = {content: _name(number) for number, content in enumerate(controls)}
        self._contents = {name: content for content, name in self._names.items()}
        longest_first = sorted(self._names, key=len, reverse=True)  # as the tokenizer itself looks for them
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if controls else None
        self._starts = {content[:length] for content in controls for length in range(1, len(content))}
        self._ends = {content[length:] for content in controls for length in range(1, len(content))}
        self._backend = type(backend).from_str(json.dumps(_renamed(tree, self._names)))
        assert all(self._backend.token_to_id(name) == backend.token_to_id(c) for c, name in self._names.items())

    def spells_control(self, value: Any) -> bool:
        """Whether a text, or any text inside a list or mapping, spells a control token."""
        if isinstance(value, str):
            return self._pattern is not None and self._pattern.search(value) is not None
        if isinstance(value, Mapping):
            return any(map(self.spells_control, (*value, *value.values())))
        return isinstance(value, (list, tuple)) and any(map(self.spells_control, value))

    def protect(self, value: Any) -> Any:
        """The same, with a mark inside each control token and beside each part of one at a text's border."""
        if isinstance(value, str):
            return self._apart(self._broken(value))
        if isinstance(value, Mapping):
            return {self._broken(key) if isinstance(key, str) else key: self.protect(v) for key, v in value.items()}
        return [self.protect(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _broken(self, text: str) -> str:
        text = without_marks(text)
        return self._pattern.sub(_marked, text) if self._pattern else text

    def _apart(self, text: str) -> str:
        """White space, which templates strip, stays outside of the marks."""
        words = text.strip()
        longest = range(1, min(len(words), max(map(len, self._starts), default=0)) + 1)
        before = _MARK if any(words[:length] in self._ends for length in longest) else ""
        behind = _MARK if any(words[-length:] in self._starts for length in longest) else ""
        if not before and not behind:
            return text
        start = len(text) - len(text.lstrip())
        return f"{text[:start]}{before}{words}{behind}{text[start + len(words) :]}"

    def named(self, text: str) -> str:
        """A text with its whole control tokens under their names, and without marks."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda found: self._names[found[0]], text)
        return text.replace(_MARK, "")

    def whole(self, text: str) -> int:
        """The length of a text of `named`, less a name that it ends in the middle of."""
        opened = text.rfind(_OPENS)
        return opened if opened > text.rfind(_CLOSES) else len(text)

    def readable(self, text: str) -> str:
        """A text of `named` with the control tokens as they are written."""
        return re.sub(f"{_OPENS}[^{_CLOSES}]*{_CLOSES}", lambda found: self._contents[found[0]], text)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokens of texts of `named`, by one call; nothing is added to them."""
        found = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [Encoding(each.ids, each.offsets) for each in found]


def without_marks(value: Any) -> Any:
    """The same, where what marks and names are made of is the sign of an unreadable character."""
    if isinstance(value, str):
        return value if value.isascii() else _NONCHARACTERS.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {without_marks(key): without_marks(item) for key, item in value.items()}
    return [without_marks(item) for item in value] if isinstance(value, (list, tuple)) else value


def codec_of(tokenizer: Any) -> Codec:
    """The tokenizer's codec, made once for each state of its vocabulary.

    Raises UserError: a tokenizer that does not say where its tokens lie in the text.
    """
    size = len(tokenizer)
    if (kept := _codecs.get(tokenizer)) is None or kept[0] != size:
        _codecs[tokenizer] = kept = (size, Codec(tokenizer))
    return kept[1]


_codecs: weakref.WeakKeyDictionary[Any, tuple[int, Codec]] = weakref.WeakKeyDictionary()


def _marked(found: re.Match[str]) -> str:
    return found[0][0] + _MARK + found[0][1:]


def _name(number: int) -> str:
    return _OPENS + "".join(_DIGITS[int(digit, 16)] for digit in f"{number:x}") + _CLOSES


def _renamed(tree: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A tokenizer.json in which control tokens have other names and the same ids. It cuts, pads and adds nothing, and
    its offsets are those of whole tokens, which a post-processor would trim."""
    model = dict(tree["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): number for token, number in vocabulary.items()}
    elif vocabulary:  # of a unigram model: [token, score], numbered by their places
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:  # a text that spells a control token must not be merged into it
        parts = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
        joined = map("".join, parts)
        model["merges"] = list(itertools.compress(model["merges"], (whole not in names for whole in joined)))
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    added = [token | {"content": names.get(token["content"], token["content"])} for token in tree["added_tokens"]]
    quiet = {"truncation": None, "padding": None, "post_processor": None}
    return tree | quiet | {"model": model, "added_tokens": added}
