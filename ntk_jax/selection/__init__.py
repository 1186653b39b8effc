"""From scores to a selection: the paper's pre-selection by votes, top-N, and the random control.

May import `training`, `ntk`, `models`, `data`, `storage`, `parallel` and `errors`.
"""
