"""All ways of ranking by name, in the order in which help lists them; a new one is one file and one line here."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ntk_jax.errors import UserError
from ntk_jax.selection import (
    bm25,
    dsir,
    embedding,
    kernel,
    kernel_residual,
    length_matched,
    less,
    low_rank,
    paths,
    perplexity,
    random,
    sketch,
    tsds,
    votes,
)
from ntk_jax.selection.ranker import Ranker

RANKERS: dict[str, Ranker] = {
    ranker.name: ranker
    for ranker in (
        kernel.RANKER,
        sketch.RANKER,
        less.RANKER,
        low_rank.RANKER,
        votes.RANKER,
        kernel_residual.RANKER,
        embedding.RANKER,
        tsds.RANKER,
        perplexity.RANKER,
        perplexity.LOWEST,
        paths.RANKER,
        bm25.RANKER,
        dsir.RANKER,
        random.RANKER,
        length_matched.RANKER,
    )
}


def ranker_of(name: str) -> Ranker:
    """The ranker of a name. Raises UserError: there is none (those that there are, are named)."""
    if name not in RANKERS:
        raise UserError(f"{name!r} is not a ranker; there are: {', '.join(RANKERS)}")
    return RANKERS[name]


def make_options(ranker: Ranker, values: Mapping[str, Any]) -> Any:
    """The options of a ranker from some of their values, as Python code gives them; the others have their defaults.

    Raises UserError: an option that it does not have, or a value outside its choices or its range.
    """
    hints = typing.get_type_hints(ranker.options, include_extras=True)
    for name, value in values.items():
        if name not in hints:
            known = ", ".join(hints) or "none"
            raise UserError(f"the ranker {ranker.name} has no option {name!r}; its options: {known}")
        origin, args = typing.get_origin(hints[name]), typing.get_args(hints[name])
        if origin is Literal and value not in args:
            raise UserError(f"{name} = {value!r} is not one of {', '.join(map(str, args))}")
        if origin is Annotated and not (isinstance(value, (int, float)) and args[1].holds(value)):
            raise UserError(f"{name} = {value!r} must be {args[1]}")
    return ranker.options(**values)
