"""LoRA fine-tuning with optax: batches in a seeded order, accumulation, resumable orbax checkpoints, FLOP counts.

May import `kernels`, `models`, `data`, `storage`, `parallel` and `errors`.
"""
