"""How good a model is: multiple choice by likelihood, raw and length-normalised, with bootstrap intervals.

May import `training`, `kernels`, `models`, `data`, `storage`, `parallel`, `builtin` and `errors`.
"""
