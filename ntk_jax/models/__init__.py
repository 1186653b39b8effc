"""Backbones: one decoder for Llama, Mistral, Qwen2.5 and Qwen3, LoRA, and Hugging Face weights in and out.

Knows nothing of kernels, training or examples; it turns tokens into hidden states and hidden states into
log-probabilities. May import `data`, `storage`, `parallel`, `builtin` and `errors`.
"""
