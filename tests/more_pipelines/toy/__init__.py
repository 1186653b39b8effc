"""A pipeline of two stages that shows what a new one takes: this folder, and its name in the list of pipelines.

May import the engine and all below it.
"""
