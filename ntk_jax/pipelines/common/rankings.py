"""The scores of every example by every method of a run, kept beside its selections: what a later comparison reads.

`select/scores.npz`: id [N] UTF-8 bytes, ordinal [N] in the pool's files, score/<method> [N] fp32 (NaN: none) of the
methods that have scores, order/<method> [count] of all: places among the N, best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntk_jax.engine.finished import require_done
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.selection.ranker import Ranking

FILE = "scores.npz"


@dataclass(frozen=True)
class Rankings:
    """run: the folder. place: of each id among the N. scores: [N] by method. selected: ids by method, best first."""

    run: str
    place: dict[str, int]
    scores: dict[str, np.ndarray]
    selected: dict[str, list[str]]

    def of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """{method: [M] fp64 scores of these ids}, NaN for those that the run has not."""
        places = np.array([self.place.get(name, -1) for name in ids], np.int64)
        return {
            method: np.where(places >= 0, scores[places], np.nan).astype(np.float64)
            for method, scores in self.scores.items()
        }


def save_rankings(path: Path, ids: Sequence[str], ordinals: np.ndarray, rankings: Mapping[str, Ranking]) -> None:
    """Writes the file, whole or not at all."""
    arrays = {"id": np.array([name.encode() for name in ids]), "ordinal": np.asarray(ordinals, np.int64)}
    for method, ranking in rankings.items():
        arrays[f"order/{method}"] = ranking.order
        if np.isfinite(ranking.scores).any():
            arrays[f"score/{method}"] = ranking.scores.astype(np.float32)
    save_arrays(path, **arrays)


def rankings_file(run: str) -> Path:
    """The file of a run directory. Raises UserError: there is none, and what to do."""
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"{run} is no folder; give the run directory of a finished `ntk-jax run`")
    if not (folder / "select").is_dir():
        raise UserError(f"{run} holds no selection; give the run directory of a finished `ntk-jax run`")
    require_done(folder, "select")
    path = folder / "select" / FILE
    if not path.exists():
        raise UserError(f"{run} was made before scores were kept; delete {folder / 'select'} and run it again")
    return path


def read_rankings(run: str) -> Rankings:
    """What a run ranked. Raises UserError: as `rankings_file`, and where none of its methods has scores."""
    path = rankings_file(run)
    arrays = load_arrays(path)
    ids = [name.decode("utf8") for name in arrays["id"].tolist()]

    def part(kind: str) -> dict[str, np.ndarray]:
        return {name.partition("/")[2]: found for name, found in arrays.items() if name.startswith(f"{kind}/")}

    scores, orders = part("score"), part("order")
    if not scores:
        raise UserError(f"{run}: none of its methods ({', '.join(orders)}) has scores to compare; give another run")
    selected = {method: [ids[place] for place in order] for method, order in orders.items()}
    return Rankings(run, {name: place for place, name in enumerate(ids)}, scores, selected)
