"""`ntk-jax export`: what a run made, in formats that other programs read. Which stages have what to give, the pipeline
knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ntk_jax.engine.finished import opened, place_of
from ntk_jax.engine.stage import Pipeline
from ntk_jax.errors import UserError
from ntk_jax.storage import bucket


@dataclass(frozen=True)
class Wanted:
    """What to write and where; None: not wanted, and with no target at all everything goes into `export/<arm>/` of the
    run. arm: whose; None: that of the run's first method, or its own arm."""

    arm: str | None = None
    adapter: str | None = None
    merged: str | None = None
    selection: str | None = None

    @property
    def named(self) -> bool:
        """Whether any target is named."""
        return bool(self.adapter or self.merged or self.selection)


def export(
    run: str, wanted: Wanted, pipelines: Sequence[Pipeline], *, out: str | None = None, overrides: Sequence[str] = ()
) -> Iterator[str]:
    """Exports from a run directory (a folder, an address in a bucket, or the config whose `out` it is). Gives a line
    for each thing that was written.

    Raises UserError: no such run, a stage that is not done (it is named), a target that exists, or as the pipeline's
    function.
    """
    place = place_of(run, out)
    if bucket.is_address(place) and not wanted.named:
        raise UserError(
            f"{place}: say where to write: --adapter DIR, --merged DIR, --selection PATH, or several of them"
        )
    able = [pipeline for pipeline in pipelines if pipeline.export]
    with opened(place, pipelines, able, overrides, "model.path") as found:
        assert found.pipeline.export
        yield from found.pipeline.export(found.config, found.folder, wanted)
