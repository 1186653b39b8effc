"""What a run of questions made, for other programs: an arm's weights, and the questions that were kept or what another
method wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from ntk_jax.pipelines.question.arms import BASE, OWN, arms_of, lines_of, own_arm
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.state import open_run
from ntk_jax.pipelines.question.train import folder_of
from ntk_jax.storage.atomic import read_json


def export(config: QuestionConfig, folder: Path, wanted: Wanted) -> Iterator[str]:
    """Writes what is wanted and gives a line for each when it is there. The arm is that of the kept questions by
    default; `name@step` is an arm on its way.

    Raises UserError: no such arm, an adapter where all the weights were trained, or as `export_arm`.
    """
    name, parameters = wanted.arm or OWN, config.train.parameters
    if not wanted.named:
        wanted = own_places(folder, name, adapter=parameters == "lora", merged=True, selection=name != BASE)

    def trained() -> Trained:
        fingerprint = require_done(folder, "train")
        arms = read_json(folder / "train" / "summary.json", dict)["arms"]
        names = [each for arm in arms for each in (arm["name"], *(f"{arm['name']}@{p}" for p in arm["points"][:-1]))]
        choose(name, names, "was not trained in this run", config.model.adapter)
        if parameters == "all":
            refuse_adapter(wanted, "train")
        return Trained(name, fingerprint, folder_of(folder / "train", name), parameters)

    def records() -> Records:
        require_done(folder, "ask")
        if "@" in name:
            trained()  # the records are those of the arm, and there must be such a step of it
        run, arm = open_run(config, Job(folder, Progress)), name.partition("@")[0]
        every = {OWN: own_arm(run)} | ({each.name: each for each in arms_of(run)} if arm != OWN else {})
        if arm not in every:
            raise UserError(f"--selection: {name} has no records in this run; give one of {', '.join(every)} as --arm")
        found = every[arm]
        if found.round is None:
            return Records(found.path.read_bytes, f"arm {arm}", _filled)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines_of(found))
        return Records(text.encode, f"arm {arm}", _filled)

    yield from export_arm(Source(config, trained, records), wanted)


def _filled(value: Any) -> Any:
    """Without the keys of empty objects, such as the verdicts where nobody judges: no column can hold one."""
    if isinstance(value, list):
        return [_filled(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in ((key, _filled(item)) for key, item in value.items()) if item != {}}
