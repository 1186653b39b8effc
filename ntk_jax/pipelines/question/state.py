"""What the stages of questions are handed: the config, the job, the target, and whoever plays the roles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from ntk_jax.data.sources import source_hashes
from ntk_jax.data.templates import Rendering
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.llm.database import Database
from ntk_jax.llm.likelihoods import Found, KeptLikelihoods
from ntk_jax.llm.request import Client
from ntk_jax.models.embedder import Embedder
from ntk_jax.models.hub import resolve
from ntk_jax.models.model import Model, load_model
from ntk_jax.pipelines.common.checks import check_model
from ntk_jax.pipelines.common.encoder import load_encoder
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.common.inputs import evaluation_files, model_hashes
from ntk_jax.pipelines.common.inputs import facts as model_facts
from ntk_jax.pipelines.common.llm import LLMSection, account, check_llm, open_client
from ntk_jax.pipelines.common.model import RunModel, mesh_of, run_model
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.question.config import ROLES, QuestionConfig, evaluation_sources, judges, player
from ntk_jax.pipelines.question.documents import reading_of_documents
from ntk_jax.questions.question import Likelihood
from ntk_jax.storage.hashing import hash_model

BATCH_TOKENS = 8192  # of one compiled step of likelihoods


@dataclass
class QuestionRun:
    """A run of questions. What is dear is made once, when it is first asked for."""

    config: QuestionConfig
    job: Job
    model: RunModel
    models: dict[tuple[str, str], Model] = field(default_factory=dict)
    clients: dict[str, Client] = field(default_factory=dict)

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices' mesh, None for a single device."""
        return mesh_of(self.config.mesh)

    @functools.cached_property
    def embedder(self) -> Embedder | None:
        """The encoder that compares questions, None where only their words are compared."""
        section = self.config.encoder
        if self.config.ask.cosine >= 1:
            return None
        found = load_encoder(section, self.mesh)
        if found.note:
            self.job.progress("encoder", None, "")(1, 1, found.note)
        return found

    def client(self, role: str) -> Client | None:
        """Whoever plays a role that is not the target's; None: nobody does. Roles that one section plays share it."""
        owner = player(self.config, role)
        if owner is None:
            return None
        if owner not in self.clients:
            section = getattr(self.config, owner)
            folder = self.llm_folder(owner)
            sampler = functools.partial(self._sampler, section)
            self.clients[owner] = open_client(section, folder, sampler, identity=identity(section), name=owner)
        return self.clients[owner]

    def target_client(self, model: Model | None, label: str) -> Client:
        """Who answers as the target: the section target, or a model in this process. label: of its training."""
        section = self.config.target
        if section.model:
            found = self.client("target")
            assert found is not None
            return found
        own = dataclasses.replace(section, model=self.config.model.path, dtype=self.config.model.dtype)
        return open_client(
            own,
            self.llm_folder("target"),
            lambda: self._client_of(own, model or self.model.base, rendering_of(self.config.model)),
            identity=self.target_name(label),
            name="target",
        )

    def target_likelihood(self, model: Model, label: str) -> Likelihood:
        """Likelihoods under the target, kept by the name of its weights."""
        return self._likelihood(model, self.target_name(label), "target")

    def expert_likelihood(self) -> Likelihood:
        """Likelihoods under the expert, which must be in this process."""
        section = self.config.expert
        return self._likelihood(self._model(section), identity(section) or section.model, "expert")

    def target_name(self, label: str) -> str:
        """Of the target's weights, and of what else decides its replies, for what is kept. label: as of a client."""
        section = self.config.model
        hashes = " ".join(value[:16] for value in model_hashes(section).values())
        rendering = rendering_of(section)
        written = str(rendering) if rendering != Rendering() else ""
        names = (Path(section.path).name, hashes, section.dtype, section.quantization, label, written)
        return " ".join(filter(None, names))

    def llm_folder(self, owner: str) -> Path:
        """Where the replies and calls of a section are kept: each has its own prices and its own cap."""
        return self.job.folder / "llm" / owner

    def spend(self) -> dict[str, Any]:
        """{section: what all its calls have cost up to now} of the servers that are asked."""
        owners = {player(self.config, role) for role in ROLES} - {None}
        servers = [name for name in ROLES if name in owners and getattr(self.config, name).kind == "server"]
        return {name: account(self.llm_folder(name)) for name in servers if self.llm_folder(name).exists()}

    def _likelihood(self, model: Model, name: str, folder: str) -> Likelihood:
        section = self.config.model
        length = min(section.max_length, model.config.max_positions)
        rendering = rendering_of(section)

        def compute(records: Sequence[Mapping[str, Any]]) -> list[Found]:
            progress = self.job.progress(f"likelihoods under the {folder}", len(records), "answers")
            found = held_out_losses(
                model,
                records,
                max_length=length,
                rendering=rendering,
                batch_tokens=BATCH_TOKENS,
                mesh=self.mesh,
                where=f"answers under the {folder}",
                progress=lambda done, total: progress(done, total, ""),
            )["losses"]
            return [None if "dropped" in one else (one["loss"] * one["tokens"], one["tokens"]) for one in found]

        return KeptLikelihoods(compute, Database(self.llm_folder(folder)), f"{name} {length} {rendering}")

    def _model(self, section: LLMSection) -> Model:
        key = (section.model, section.dtype)
        if is_base(self.config, section):
            return self.model.base  # whose fresh adapter changes nothing: the weights are in memory once
        if key not in self.models:
            self.job.progress("llm", None, "")(1, 1, f"loading {section.model}")
            self.models[key] = load_model(section.model, dtype=section.dtype, mesh=self.mesh)
        return self.models[key]

    def _sampler(self, section: LLMSection) -> Client:
        return self._client_of(section, self._model(section))

    def _client_of(self, section: LLMSection, model: Model, rendering: Rendering | None = None) -> Client:
        from ntk_jax.llm.sampler import ModelClient

        return ModelClient(model, rendering=rendering or Rendering(), slots=section.slots, mesh=self.mesh)


def identity(section: LLMSection) -> str | None:
    """A model in this process by its files, so that no reply of other weights is taken for its own."""
    if section.kind != "model":
        return None
    return f"{Path(section.model).name} {hash_model(resolve(section.model))[:16]} {section.dtype}"


def open_run(config: QuestionConfig, job: Job) -> QuestionRun:
    """The run of a config."""
    return QuestionRun(config, job, run_model(config))


def check(config: QuestionConfig) -> None:
    """Raises UserError: no model, no documents, or a role that nobody can play as it is set."""
    check_model(config.model)
    if not config.documents.files:
        raise UserError(
            "documents.files is not set; give text files, or JSONL, Parquet or Arrow with one document a record"
        )
    if not config.expert.model:
        raise UserError("expert.model is not set; give the stronger model, or its name at a server")
    for role in ROLES:
        section = getattr(config, role)
        if section.model:
            check_llm(section, role)


def facts(config: QuestionConfig) -> dict[str, Any]:
    """What plan.json keeps for the report: who plays which role."""
    roles = {}
    for role in ROLES:
        owner = player(config, role)
        if role == "target" and owner is None:
            roles[role] = config.model.path
        elif owner is not None and (role != "judge" or judges(config)):
            roles[role] = getattr(config, owner).model
    return {"roles": roles, "same": same_model(config), **model_facts(config)}


def same_model(config: QuestionConfig) -> bool:
    """Whether target and expert are one model."""
    expert, target = config.expert, config.target
    if not target.model:
        return expert.kind == "model" and _one(expert.model, config.model.path)
    return expert.kind == target.kind and (
        _one(expert.model, target.model) if expert.kind == "model" else expert.model == target.model
    )


def is_base(config: QuestionConfig, section: LLMSection) -> bool:
    """Whether a model in this process is the model of the section `model`, as it is before any training."""
    own = config.model
    return _one(own.path, section.model) and (own.dtype, own.adapter, own.quantization) == (section.dtype, None, None)


def _one(first: str, second: str) -> bool:
    """Whether two models in this process are one, by their names or by the folders that they name."""
    one, other = Path(first).expanduser(), Path(second).expanduser()
    return first == second or bool(first and second and one.is_dir() and other.is_dir() and one.samefile(other))


def input_hashes(config: QuestionConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    return {
        "model": lambda: model_hashes(config.model),
        "encoder": lambda: (
            {config.encoder.path: hash_model(resolve(config.encoder.path))} if config.ask.cosine < 1 else {}
        ),
        "documents": lambda: source_hashes(config.documents.files, reading_of_documents(config)),
        "llm": lambda: _llm_hashes(config),
        "decontaminate": lambda: (
            source_hashes(tuple(dict.fromkeys(evaluation_sources(config))), reading_of(config, "evaluate"))
            | source_hashes(tuple(dict.fromkeys(config.ask.decontaminate)))
        ),
        "evaluate": lambda: source_hashes(
            tuple(dict.fromkeys((*evaluation_files(config), *config.evaluate.general))), reading_of(config, "evaluate")
        ),
    }


def _llm_hashes(config: QuestionConfig) -> dict[str, str]:
    """The files of models that are asked in this process; a server's are not here."""
    sections = [getattr(config, role) for role in ROLES]
    paths = [section.model for section in sections if section.model and section.kind == "model"]
    return {path: hash_model(resolve(path)) for path in dict.fromkeys(paths)}
