"""Question: what a model does not understand in a set of documents (adversarial questions, arXiv 2602.18137), and
training on an expert's answers.

May import `pipelines.common`, `engine` and all below it, and no other pipeline.
"""
