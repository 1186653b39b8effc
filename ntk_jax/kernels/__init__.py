"""The kernel: objectives, mean gradients, directional scores, exact kernels and sketches, over token batches and
parameter trees.

May import `models`, `data`, `storage`, `parallel` and `errors`, and uses of `data` only the batch layout: a function
here that needs a path or a tokenizer belongs elsewhere.
"""
