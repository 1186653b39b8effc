"""From files to device batches: records, sources, chat templates, tokens with their span, and packing.

May import `storage`, `parallel`, `builtin` and `errors`. Knows tokenizers, but no model and no kernel.
"""
