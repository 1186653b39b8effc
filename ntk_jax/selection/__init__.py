"""From scores to a selection: the paper's pre-selection by votes, top-N, stores of sketches and the ranking by
them, and the random control.

May import `training`, `ntk`, `models`, `data`, `storage`, `parallel` and `errors`.
"""
