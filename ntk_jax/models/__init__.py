"""The decoder (Llama, Qwen2.5 and Qwen3 differ by flags), its head, LoRA, and Hugging Face and PEFT files in and out.

May import `data`, `storage`, `parallel` and `errors`. Knows nothing of kernels or of training.
"""
