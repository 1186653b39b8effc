"""Tokenizers made here, so that tests need no download: one token a byte, special tokens, a template on demand."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
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
