"""What the stages of mining are handed: the config, the job, the model, the encoder and whoever writes seeds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ntk_jax.data import columns
from ntk_jax.data.sources import source_hashes
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Client
from ntk_jax.mining.corpus.files import corpus_files
from ntk_jax.mining.seeds.own import seed_files
from ntk_jax.models.embedder import Embedder
from ntk_jax.models.hub import resolve
from ntk_jax.models.model import load_model
from ntk_jax.pipelines.common.encoder import load_encoder
from ntk_jax.pipelines.common.inputs import evaluation_files, model_hashes
from ntk_jax.pipelines.common.inputs import facts as model_facts
from ntk_jax.pipelines.common.llm import LLMSection, account, check_llm, open_client
from ntk_jax.pipelines.common.model import RunModel, mesh_of, run_model
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.mine.config import MineConfig, asks_llm, domain_names
from ntk_jax.storage.hashing import hash_model, hash_tree, sha256_file


@dataclass
class MineRun:
    """A run of mining. What is dear is made once, when it is first asked for."""

    config: MineConfig
    job: Job
    model: RunModel

    @property
    def domains(self) -> dict[str, str]:
        """{name: what belongs to it} of the domains, and of those they are set against."""
        return {
            name: str(text) for name, text in {**(self.config.domains or {}), **(self.config.contrast or {})}.items()
        }

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices' mesh, None for a single device."""
        return mesh_of(self.config.mesh)

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The encoder of seeds and corpus."""
        section = self.config.encoder
        found = load_encoder(section, self.mesh)
        if found.note:
            self.job.progress("encoder", None, "")(1, 1, found.note)
        return found

    @functools.cached_property
    def client(self) -> Client:
        """Whoever writes seeds and judges chunks; the replies and calls of all stages are kept in one place."""
        section = self.config.llm
        return open_client(section, self.llm_folder, self._sampler, identity=_identity(section))

    @property
    def llm_folder(self) -> Path:
        """Where replies and calls are kept."""
        return self.job.folder / "llm"

    def spend(self) -> dict[str, Any] | None:
        """What all calls to a server have cost up to now, for a summary; None where no server was asked."""
        return account(self.llm_folder) if self.config.llm.kind == "server" and asks_llm(self.config) else None

    def _sampler(self) -> Client:
        from ntk_jax.llm.sampler import ModelClient

        section = self.config.llm
        self.job.progress("llm", None, "")(1, 1, f"loading {section.model}")
        model = load_model(section.model, dtype=section.dtype, mesh=self.mesh)
        return ModelClient(model, slots=section.slots, mesh=self.mesh)


def open_run(config: MineConfig, job: Job) -> MineRun:
    """The run of a config."""
    return MineRun(config, job, run_model(config))


def check(config: MineConfig) -> None:
    """Raises UserError: no domains, no corpus, or a language model that cannot be asked as it is set."""
    if not config.domains:
        raise UserError("domains is not set; give {name: what belongs to it}, such as {medicine: diseases and drugs}")
    for key, given in (("domains", config.domains), ("contrast", config.contrast or {})):
        for name, text in given.items():
            if not isinstance(text, str) or not text.strip():
                raise UserError(f"{key}.{name}: give a sentence that says what belongs to it")
            if name != name.strip() or "/" in name or not name:
                raise UserError(f"{key}: {name!r} cannot be the name of a domain; use letters, digits and spaces")
    folded = [name.casefold() for name in domain_names(config)]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    if twice:
        raise UserError(f"domains: {twice[0]} is named twice; give every domain its own name")
    if not config.corpus.files:
        raise UserError("corpus.files is not set; give web archives, JSONL, Parquet or text files")
    if asks_llm(config):
        check_llm(config.llm)


def facts(config: MineConfig) -> dict[str, Any]:
    """What plan.json keeps for the report."""
    domains = {name: str(text) for name, text in (config.domains or {}).items()}
    return {"domains": domains, **(model_facts(config) if config.model.path else {})}


def input_hashes(config: MineConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    return {
        "model": lambda: model_hashes(config.model),
        "encoder": lambda: {config.encoder.path: hash_model(resolve(config.encoder.path))},
        "seeds": lambda: source_hashes(_files(config.seeds.files)),
        "corpus": lambda: _corpus_hashes(config),
        "decontaminate": lambda: source_hashes(config.corpus.decontaminate),
        "llm": lambda: _llm_hashes(config),
        "labels": lambda: source_hashes(_files(config.label.files)),
        "pretrain": lambda: source_hashes(config.pretrain.files),
        "evaluate": lambda: source_hashes(evaluation_files(config), reading_of(config, "evaluate")),
    }


def _llm_hashes(config: MineConfig) -> dict[str, str]:
    """The files of a model that is asked in this process; a server's are not here."""
    if config.llm.kind != "model" or not asks_llm(config):
        return {}
    return {config.llm.model: hash_model(resolve(config.llm.model))}


def _identity(section: LLMSection) -> str | None:
    """A model in this process by its files, so that no reply of other weights is taken for its own."""
    if section.kind != "model":
        return None
    return f"{Path(section.model).name} {hash_model(resolve(section.model))[:16]} {section.dtype}"


def _files(given: Any) -> tuple[str, ...]:
    return tuple(path for files in seed_files(given or {}).values() for path in files)


def _corpus_hashes(config: MineConfig) -> dict[str, str]:
    """By the names that chunks carry: where the corpus' folder stands decides nothing."""
    pieces = corpus_files(config.corpus.files)
    return {
        piece.name: hash_tree([piece.name, piece.size]) if columns.remote_kind(piece.path) else sha256_file(piece.path)
        for piece in pieces
    }
