"""What is kept of prompts: the names of their pieces, and which go when the room is used up."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.llm.prefixes import Prefixes, default_limit, names_of
from ntk_jax.models.cache import Cache

PIECE = Cache(np.zeros(3, np.float32), np.zeros(2, np.float32))  # 20 bytes
texts = st.lists(st.integers(0, 1), min_size=1, max_size=12)


@given(texts, texts, st.integers(1, 4))
def test_names_are_alike_as_far_as_whole_pieces_are(one: list[int], other: list[int], length: int) -> None:
    names = [names_of(ids, length) for ids in (one, other)]
    assert [len(found) for found in names] == [(len(ids) - 1) // length for ids in (one, other)]
    assert len(set(names[0])) == len(names[0])
    for number, (a, b) in enumerate(zip(*names, strict=False)):
        end = length * (number + 1)
        assert (a == b) == (one[:end] == other[:end])


def test_tokens_of_any_size_have_their_own_names() -> None:
    assert len({names_of([token, 0], 1)[0] for token in (1, 256, 2**16, 2**31, 2**40)}) == 5


@settings(max_examples=200)
@given(st.lists(st.tuples(texts, st.integers(0, 6)), max_size=12), st.integers(0, 6))
def test_the_beginnings_of_what_is_kept_are_kept_within_the_room(steps: list[tuple[list[int], int]], room: int) -> None:
    prefixes, seen = Prefixes(20 * room + 7), {}
    for ids, begin in steps:
        names = names_of(ids, 2)
        seen |= {tuple(names[: number + 1]): names[number] for number in range(len(names))}
        held = [name in prefixes for name in names]
        found = prefixes.found(names, begin)
        assert len(found) == max(0, held.index(False) - begin if False in held else len(held) - begin)
        for number in range(len(names)):
            prefixes.keep(names[: number + 1], PIECE)
        assert len(prefixes) <= room and prefixes.bytes == 20 * len(prefixes)
        assert all(names[number] in prefixes for number in range(min(room, len(names))))  # the latest, from its start
        for chain in seen:
            held = [name in prefixes for name in chain]
            assert held == sorted(held, reverse=True)


def test_what_was_not_used_for_longest_goes_first() -> None:
    prefixes, (a, b, c) = Prefixes(40), (names_of([token, 0], 1) for token in (1, 2, 3))
    prefixes.keep(a, PIECE)
    prefixes.keep(b, PIECE)
    assert prefixes.found(a, 0) == [PIECE]
    prefixes.keep(c, PIECE)
    assert [names[0] in prefixes for names in (a, b, c)] == [True, False, True]
    prefixes.keep([b[0], a[0]], PIECE)  # without its beginning
    assert len(prefixes) == 2 and default_limit() == 2**30
