"""What a mining run made, for other programs: an arm's weights, and the mined text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ntk_jax.engine.export import Wanted
from ntk_jax.engine.finished import require_done
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.export import (
    Records,
    Source,
    Trained,
    choose,
    export_arm,
    own_places,
    refuse_adapter,
)
from ntk_jax.pipelines.mine.arms import OWN, arms_of
from ntk_jax.pipelines.mine.classify import MINED
from ntk_jax.pipelines.mine.config import MineConfig
from ntk_jax.pipelines.mine.pretrain import trained_arms
from ntk_jax.pipelines.mine.state import open_run


def export(config: MineConfig, folder: Path, wanted: Wanted) -> Iterator[str]:
    """Writes what is wanted and gives a line for each when it is there. The arm is that of the mined text by default,
    with the first of its shares.

    Raises UserError: no such arm, nothing was trained, an adapter where all the weights were, or as `export_arm`.
    """
    section = config.pretrain
    found = trained_arms(section, arms_of(open_run(config, Job(folder, Progress)))) if section.tokens else []
    own = [arm.name for arm in found if arm.source.name == OWN] or [OWN]
    name = wanted.arm or own[0]
    if not wanted.named:
        there, whole = bool(found), section.parameters == "all"
        wanted = own_places(folder, name, adapter=there and not whole, merged=there, selection=name in own)

    def trained() -> Trained:
        if not found:
            raise UserError(
                "this run trained nothing (pretrain.tokens = 0), so there are no weights; take --selection PATH, the "
                "mined text"
            )
        choose(name, (arm.name for arm in found), "was not trained in this run", config.model.adapter)
        if section.parameters == "all":
            refuse_adapter(wanted, "pretrain")
        fingerprint = require_done(folder, "pretrain")
        return Trained(name, fingerprint, folder / "pretrain" / name, section.parameters)

    def records() -> Records:
        if name not in own:
            raise UserError(
                f"--selection: {name} has no records of its own; the mined text is that of {own[0]}, which --arm may "
                "name, or leave --arm out"
            )
        require_done(folder, "classify")
        return Records((folder / "classify" / MINED).read_bytes, "the mined text")

    yield from export_arm(Source(config, trained, records), wanted)
