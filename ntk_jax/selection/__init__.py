"""From scores to a selection: the ways of ranking a pool, the stores of sketches, and how a selection is written.

A way of ranking is a `Ranker` (`ranker.py`): one file, and one line in `rankers.py`. The rankers' files import neither
jax nor tensorstore before they rank, because the command line reads their options to print its help.

May import `mining`, `training`, `kernels`, `models`, `data`, `storage`, `parallel`, `settings` and `errors`.
"""
