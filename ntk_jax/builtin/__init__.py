"""The embedded default: a small model and a controlled data set, both made by this project's own scripts.

Only files, no code: `builtin:model` and `builtin:NAME.jsonl` in a config name what lies here. Imports nothing.
"""
