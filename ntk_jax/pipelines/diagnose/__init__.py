"""Diagnosis: does fine-tuning stay in the NTK regime, and which approximation of the kernel ranks right?

May import `pipelines.common`, `engine` and all below it, and no other pipeline.
"""
