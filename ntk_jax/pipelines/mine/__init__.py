"""Mine: a domain's pre-training text from a large corpus (DoPAMine, arXiv 2410.00260), and training on it.

May import `pipelines.common`, `engine` and all below it, and no other pipeline.
"""
