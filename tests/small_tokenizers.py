"""Tokenizers made here, so that tests need no download: special tokens, a template on demand, and one token a byte or
merges learnt from a few sentences, in each of the ways in which tokenizers treat spaces."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<think>", "</think>")

# Turns between markers, the shape most chat templates have.
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Llama's: the template writes the BOS itself and strips the contents.
CHAT_WITH_BOS = (
    "<bos>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As Qwen3's: the last answer opens with a thought, empty unless the response brings one.
CHAT_THINKING = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if loop.last and m['role'] == 'assistant' and '</think>' not in m['content'] %}<think></think>{% endif %}"
    "{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)

# As Llama 2's: no token but BOS and EOS marks a turn.
CHAT_IN_WORDS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] | trim }} <eos>"
    "{% else %}<bos>[INST] {{ m['content'] | trim }} [/INST]{% endif %}{% endfor %}"
)
# As Zephyr's: the names of the turns are words on a line of their own.
CHAT_ON_LINES = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
# As DeepSeek-R1's: generation begins with a thought, and a turn that is over has lost it.
CHAT_FORGETTING = (
    "<bos>{% for m in messages %}<|{{ m['role'] }}|>{% set words = m['content'] %}"
    "{% if m['role'] == 'assistant' and '</think>' in words %}{% set words = words.split('</think>')[-1] %}{% endif %}"
    "{{ words }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
SENTENCES = """The cat sat on the mat, and the dog sat on the log. A lily is a flower; thank you, said Lily.
Thank you very much! How many legs has a spider? It has eight legs. Yes or no? No, it is not so.

An answer: Answer: the answer is 42.  Two  spaces, a\ttab, and then\n\n\n empty lines.\n\n\n The
na\u00efve caf\u00e9 \u6f22\u5b57"""


def byte_tokenizer(*, chat: str | None = None, adds_bos: bool = False, eos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges; `adds_bos` as Llama's do, when asked for special tokens."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
        )
    names = {"bos_token": "<bos>", "eos_token": "<eos>"} if eos else {"bos_token": "<bos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = chat
    return tokenizer


KINDS = ("byte level", "byte level, prefix space", "prepend", "metaspace always", "metaspace first", "unigram")


def learnt_tokenizer(kind: str, *, chat: str | None = None, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Merges or pieces learnt from SENTENCES. kind: one of KINDS, the ways in which tokenizers write a space."""
    inner = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    alphabet = [chr(code) for code in range(33, 127)] + list("\u2581\n\t\u00e9\u6f22")
    if kind.startswith("byte level"):
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix space"))
        inner.decoder = decoders.ByteLevel()
        inner.post_processor = processors.ByteLevel(trim_offsets=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "prepend":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        scheme = "always" if kind.endswith("always") else "first"
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind == "unigram")
        inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer: trainers.Trainer
    special: Any = ["<unk>", *SPECIAL]
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=440, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    if kind == "prepend":  # it learns words, as one that has seen more than a few sentences
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        inner.decoder = decoders.Metaspace(prepend_scheme="always")
    inner.train_from_iterator([SENTENCES] * 4, trainer)
    if kind == "prepend":
        inner.pre_tokenizer = None  # type: ignore[assignment]
    if adds_bos and not kind.startswith("byte level"):
        inner.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = chat
    return tokenizer
