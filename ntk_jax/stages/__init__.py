"""One file per group of stages of a run: what each reads, computes and writes; `pipeline.py` puts them in order.

May import every room, and `config`; only `pipeline` imports it. A stage is a function of a `Run`, writes into its
own folder and returns nothing: what a later stage needs, it reads from disk, so that any stage can be run alone.
"""
