"""The name table: which Hugging Face tensors make up which of our leaves.

Ours are stacked over layers, [in, out], and flat in naming (`layers/q_proj/kernel`); theirs are one tensor a
layer, [out, in] as torch keeps a linear (`model.layers.3.self_attn.q_proj.weight`). Loading, saving and the
PEFT format all read this one table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ntk_jax.models.config import ModelConfig

MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
HEAD = "lm_head.weight"
EMBED = "model.embed_tokens.weight"
# Parts of a name that come from what was around the model when it was saved: torch.compile, data parallelism, FSDP,
# checkpointed activations, TRL's model with a value head.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "pretrained_model"})
DERIVED = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")  # made from config.json
VALUE_HEAD = re.compile(r"(v_head|value_head)\..+")  # of RLHF: reads hidden states, and changes none
# What names say of a checkpoint that is no plain float one of this decoder.
_FOREIGN = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (
            r"\.(qweight|qzeros|g_idx|scales|weight_packed|weight_scale|weight_scale_inv|SCB)$|\.weight\.(absmax|quant_)",
            "quantized weights (GPTQ, AWQ, FP8, bitsandbytes) are not supported; use the unquantized checkpoint",
        ),
        (r"\.lora_[AB]\.|\.base_layer\.", "an adapter was saved unmerged; call merge_and_unload() before saving"),
        (
            r"(^|\.)(language_model|vision_tower|visual|multi_modal_projector)\.",
            "this is a multimodal model; only text models are supported",
        ),
        (r"\.(experts|block_sparse_moe)\.", "this is a mixture of experts; only dense models are supported"),
        (r"^(score|classifier)\.", "this is a classifier; use the language model it was made from"),
        (
            r"^(tok_embeddings\.weight|layers\.\d+\.(attention|feed_forward)\..*)$",
            "these are Meta's or Mistral's own names; use the files in Hugging Face format",
        ),
    )
)


@dataclass(frozen=True)
class Source:
    """The tensors of one leaf: one name, or one a layer when stacked; transposed for linears."""

    names: tuple[str, ...]
    stacked: bool = False
    transposed: bool = False


def name_table(config: ModelConfig) -> dict[str, Source]:
    """Leaf path → its tensors, for every leaf of the base tree of this model."""

    def stacked(suffix: str, transposed: bool = False) -> Source:
        names = tuple(f"model.layers.{i}.{suffix}" for i in range(config.num_layers))
        return Source(names, stacked=True, transposed=transposed)

    table = {"embed": Source((EMBED,)), "norm": Source(("model.norm.weight",))}
    if not config.tied:
        table["head"] = Source((HEAD,))
    for name, module in MODULES.items():
        table[f"layers/{name}/kernel"] = stacked(f"{module}.weight", transposed=True)
        if config.o_bias if name == "o_proj" else config.qkv_bias and name in ("q_proj", "k_proj", "v_proj"):
            table[f"layers/{name}/bias"] = stacked(f"{module}.bias")
    table["layers/input_norm"] = stacked("input_layernorm.weight")
    table["layers/post_attention_norm"] = stacked("post_attention_layernorm.weight")
    if config.qk_norm:
        table["layers/q_norm"] = stacked("self_attn.q_norm.weight")
        table["layers/k_norm"] = stacked("self_attn.k_norm.weight")
    return table


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Name in a checkpoint → name in the table: without `WRAPPERS`, and with the `model.` that a bare backbone lacks.
    Two of them may come to the same name."""
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    if not any(name.startswith("model.") for name in plain.values()):
        backbone = re.compile(r"(layers|embed_tokens|norm|rotary_emb)\.")
        plain = {name: f"model.{short}" if backbone.match(short) else short for name, short in plain.items()}
    return plain


def foreign(name: str) -> str | None:
    """Why a checkpoint with a tensor of this name cannot be read; None for a name that says nothing."""
    return next((reason for pattern, reason in _FOREIGN if pattern.search(name)), None)
