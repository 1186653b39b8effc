"""What a run of NTK-Selector made, for other programs: an arm's adapter, or its weights merged into the model's, and a
method's selection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ntk_jax.engine.export import Wanted
from ntk_jax.engine.finished import require_done
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.export import Records, Source, Trained, choose, export_arm, own_places
from ntk_jax.pipelines.select.arms import arms
from ntk_jax.pipelines.select.config import SelectConfig


def export(config: SelectConfig, folder: Path, wanted: Wanted) -> Iterator[str]:
    """Writes what is wanted and gives a line for each when it is there; the arm is that of the first method by default.

    Raises UserError: no such arm or method, or as `export_arm`.
    """
    name, methods = wanted.arm or config.select.methods[0], config.select.methods
    if not wanted.named:
        wanted = own_places(folder, name, adapter=True, merged=True, selection=name in methods)

    def trained() -> Trained:
        found = {arm.name: arm for arm in arms(config) if arm.trained}
        arm = next((arm.name for arm in found.values() if arm.file and name == f"file:{arm.file}"), name)
        arm = choose(arm, found, "was not fine-tuned in this run", config.model.adapter)
        return Trained(arm, require_done(folder, "finetune"), folder / "finetune" / arm)

    def records() -> Records:
        if name not in methods:
            raise UserError(
                f"--selection: {name} is no method of this run, which has {', '.join(methods)}; give one of them as "
                "--arm"
            )
        require_done(folder, "select")
        return Records((folder / "select" / f"{name}.jsonl").read_bytes, f"method {name}")

    yield from export_arm(Source(config, trained, records), wanted)
