"""What several pipelines use: shared sections of a config, the model, the examples and the pool of a run, its checks.

May import `engine` and all below it, and no pipeline.
"""
