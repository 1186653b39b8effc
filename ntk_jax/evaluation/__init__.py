"""How good a model is: multiple choice by likelihood, raw and length-normalised, with bootstrap intervals.

May import `selection`, `training`, `ntk`, `models`, `data`, `storage`, `parallel`, `builtin` and `errors`.
"""
