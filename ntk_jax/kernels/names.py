"""The objectives by name, for what must not wait for jax: the choices of a config and the help of the command line.

What each name is, `objectives.py` says, where each has one function; a test holds the two together. Ways of averaging
hidden states are in `score.py: pooled_hidden_states`.
"""

from __future__ import annotations

from typing import Literal, get_args

ObjectiveName = Literal["sum_logits", "probe", "cross_entropy", "target_logit"]
NormalizationName = Literal["mean", "sum", "none"]
Pooling = Literal["mean", "position"]
Over = Literal["all", "response"]

OBJECTIVES: tuple[str, ...] = get_args(ObjectiveName)
NORMALIZATIONS: tuple[str, ...] = get_args(NormalizationName)
