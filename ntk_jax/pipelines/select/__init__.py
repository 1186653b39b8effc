"""NTK-Selector: from a scarce domain and a general pool to a selection, adapters trained on it, and their evaluation.

May import `pipelines.common`, `engine` and all below it, and no other pipeline.
"""
