"""One file per group of stages of a run: what each reads, computes and writes; `pipeline.py` puts them in order.

May import every room, and `config`; only `pipeline` and `doctor` import it. A stage is a function of a `Run`, writes
into its own folder and returns a few facts for its manifest: what a later stage needs, it reads from disk, so that any
stage can be run alone.
"""
