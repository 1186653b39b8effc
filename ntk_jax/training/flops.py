"""FLOPs by formula, so that arms, stages and machines can be compared without a profiler.

Convention: one multiply-add is 2 FLOPs and only matrix products count. `tokens` are real tokens, never
padding, and `label_tokens` are the positions that meet the LM head. With P the parameters of a layer's
matrices summed over layers, a forward pass costs 2 P a token (Kaplan et al., arXiv 2001.08361, section 2.1).
A backward pass adds 2 P for the gradient of the activations, and another 2 P for the gradient of the weights
where they are trained. Attention's own products (scores and values) cost 4 L H d a token and a visible key;
they are left out unless `context`, the mean number of visible keys, is given.
"""

from __future__ import annotations

from ntk_jax.models.config import ModelConfig


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters of the linear layers of the trunk: all L layers, without embedding, norms, biases and head."""
    width, inner = config.hidden_size, config.intermediate_size
    query, key_value = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return config.num_layers * (2 * width * query + 2 * width * key_value + 3 * width * inner)


def head_parameters(config: ModelConfig) -> int:
    """Parameters of the LM head, V D, tied or not."""
    return config.vocab_size * config.hidden_size


def forward_flops(
    config: ModelConfig, tokens: int, label_tokens: int = 0, *, lora_parameters: int = 0, context: float = 0.0
) -> float:
    """FLOPs of one forward pass: 2 (P + P_lora) a token, 2 V D a label token."""
    trunk = 2.0 * (matrix_parameters(config) + lora_parameters) + _attention(config, context)
    return trunk * tokens + 2.0 * head_parameters(config) * label_tokens


def training_flops(
    config: ModelConfig,
    tokens: int,
    label_tokens: int,
    remat: bool = False,
    *,
    parameters: str = "lora",
    lora_parameters: int = 0,
    context: float = 0.0,
) -> float:
    """FLOPs of forward and backward over `tokens`.

    `parameters="lora"`: 4 P (forward and the gradient of the activations) + 6 P_lora; `"all"`: 6 (P + P_lora),
    and likewise 4 or 6 V D a label token. `remat=True` adds the trunk's second forward pass. The optimiser's
    own work, a few FLOPs a parameter and step, is not counted. Nor is the head's second forward pass, by which large
    vocabularies are kept out of memory (`target_log_probs`).
    """
    base_factor = 6.0 if parameters == "all" else 4.0
    trunk = base_factor * matrix_parameters(config) + 6.0 * lora_parameters + 3.0 * _attention(config, context)
    if remat:
        trunk += 2.0 * (matrix_parameters(config) + lora_parameters) + _attention(config, context)
    return trunk * tokens + base_factor * head_parameters(config) * label_tokens


def metagradient_flops(
    config: ModelConfig,
    tokens: int,
    label_tokens: int,
    remat: bool = False,
    *,
    lora_parameters: int = 0,
    again: bool = True,
) -> float:
    """FLOPs of a training over `tokens` and of its reverse sweep: the gradient of every step, once more where the steps
    of a segment are done `again`, and the gradient with its tangent along one direction, which costs twice a gradient.
    """
    once = training_flops(config, tokens, label_tokens, remat, lora_parameters=lora_parameters)
    return (4.0 if again else 3.0) * once


def score_flops(
    config: ModelConfig,
    tokens: int,
    label_tokens: int = 0,
    *,
    directions: int = 1,
    lora_parameters: int = 0,
    dense_parameters: int = 0,
    late: float = 1.0,
    context: float = 0.0,
) -> float:
    """FLOPs of the forward-mode score: one primal pass and `directions` tangents beside it.

    A tangent of a frozen matrix costs what the primal costs (2 P); of a differentiated one twice that, because
    d(xW) = dx W + x dW. Hence (1 + m) 2 P a token on the LoRA path, and 2 m times the `dense_parameters` more, those
    of the trunk's own matrices that are differentiated: (1 + 2 m) 2 P when all are. The attention tangent has two
    products where the primal has one. `late` is the share of the layers at and behind the first that is differentiated:
    no tangent enters the others, and with the adapters of the last k of L layers the score costs (1 + m k/L) 2 P.
    `label_tokens` is 0 for the objectives that never build the head.
    """
    moving = directions * late
    trunk = 2.0 * (1.0 + moving) * matrix_parameters(config) + 2.0 * directions * dense_parameters
    trunk += 2.0 * (1.0 + 2.0 * moving) * lora_parameters + (1.0 + 2.0 * moving) * _attention(config, context)
    return trunk * tokens + 2.0 * (1.0 + directions) * head_parameters(config) * label_tokens


def gradient_flops(
    config: ModelConfig,
    tokens: int,
    label_tokens: int = 0,
    *,
    directions: int = 1,
    lora_parameters: int = 0,
    dense_parameters: int = 0,
    late: float = 1.0,
) -> float:
    """FLOPs of the mean gradient: a forward pass, and for each of the m directions (probes) the second forward pass of
    the `late` layers (as in `score_flops`) and a backward pass through them, which costs 2 P for the activations and 2
    more for each parameter differentiated."""
    moving = directions * late
    trunk = 2.0 * matrix_parameters(config) * (1.0 + 2.0 * moving) + (2.0 + 6.0 * moving) * lora_parameters
    trunk += 2.0 * directions * dense_parameters
    return trunk * tokens + 2.0 * head_parameters(config) * (1.0 + 2.0 * directions) * label_tokens


def kernel_flops(
    config: ModelConfig,
    tokens: int,
    cotangents: int,
    *,
    pairs: int = 0,
    lora_parameters: int = 0,
    dense_parameters: int = 0,
    late: float = 1.0,
) -> float:
    """FLOPs of a kernel by contraction: one forward pass over the tokens of both sets, a backward pass through the
    `late` layers (as in `score_flops`) for each cotangent, which costs 2 P for the activations and 2 for each parameter
    differentiated, and 2 for each parameter of the contraction of a pair."""
    moving = cotangents * late
    trunk = 2.0 * matrix_parameters(config) * (1.0 + moving) + (2.0 + 4.0 * moving) * lora_parameters
    trunk += 2.0 * cotangents * dense_parameters
    return trunk * tokens + 2.0 * pairs * cotangents * (dense_parameters or late * lora_parameters)


def _attention(config: ModelConfig, context: float) -> float:
    return 4.0 * config.num_layers * config.num_heads * config.head_dim * context
