"""The name table: which Hugging Face tensors make up which of our leaves.

Ours are stacked over layers, [in, out], and flat in naming (`layers/q_proj/kernel`); theirs are one tensor a
layer, [out, in] as torch keeps a linear (`model.layers.3.self_attn.q_proj.weight`). Loading, saving and the
PEFT format all read this one table.
"""

from __future__ import annotations

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
