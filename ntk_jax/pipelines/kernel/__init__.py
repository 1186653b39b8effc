"""Kernel: the exact neural tangent kernel between two files of examples, as a matrix in a file.

May import `pipelines.common`, `engine` and all below it, and no other pipeline.
"""
