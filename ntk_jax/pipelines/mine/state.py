"""What the stages of mining are handed: the config, the job, the model, the encoder and whoever writes seeds."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax

from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Client
from ntk_jax.models.embedder import Embedder, load_embedder
from ntk_jax.models.hub import resolve
from ntk_jax.pipelines.common.llm import check_llm, open_client
from ntk_jax.pipelines.common.model import RunModel, mesh_of, run_model
from ntk_jax.pipelines.mine.config import MineConfig, asks_llm, domain_names
from ntk_jax.pipelines.mine.own_files import seed_files
from ntk_jax.storage.hashing import hash_model, sha256_file


@dataclass
class MineRun:
    """A run of mining. What is dear is made once, when it is first asked for."""

    config: MineConfig
    job: Job
    model: RunModel

    @property
    def domains(self) -> dict[str, str]:
        """{name: what belongs to it}."""
        return {name: str(text) for name, text in (self.config.domains or {}).items()}

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices' mesh, None for a single device."""
        return mesh_of(self.config.mesh)

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The encoder of seeds and corpus."""
        section = self.config.encoder
        found = load_embedder(
            section.path,
            pooling=section.pooling,
            normalize=section.normalize,
            query_prefix=section.query_prefix,
            passage_prefix=section.passage_prefix,
            max_tokens=section.max_tokens,
            dtype=section.dtype,
            mesh=self.mesh,
        )
        if found.note:
            self.job.progress("encoder", None, "")(1, 1, found.note)
        return found

    def client(self, stage: str) -> Client:
        """Whoever writes seeds and judges chunks, with the calls, replies and spend of all stages in one place."""
        return open_client(self.config.llm, self.job.folder / "llm", stage=stage, progress=self.job.progress)


def open_run(config: MineConfig, job: Job) -> MineRun:
    """The run of a config."""
    return MineRun(config, job, run_model(config))


def check(config: MineConfig) -> None:
    """Raises UserError: no domains, no corpus, or a language model that cannot be asked as it is set."""
    if not config.domains:
        raise UserError("domains is not set; give {name: what belongs to it}, such as {medicine: diseases and drugs}")
    for name, text in config.domains.items():
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"domains.{name}: give a sentence that says what belongs to it")
        if name != name.strip() or "/" in name or not name:
            raise UserError(f"domains: {name!r} cannot be the name of a domain; use letters, digits and spaces")
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
    return {"domains": {name: str(text) for name, text in (config.domains or {}).items()}}


def input_hashes(config: MineConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    from ntk_jax.mining.corpus.sources import corpus_files
    from ntk_jax.pipelines.common.inputs import model_hashes

    return {
        "model": lambda: model_hashes(config.model),
        "encoder": lambda: {config.encoder.path: hash_model(resolve(config.encoder.path))},
        "seeds": lambda: {path: sha256_file(path) for path in seed_files(config)},
        "corpus": lambda: {path: sha256_file(path) for path in corpus_files(config.corpus.files)},
        "decontaminate": lambda: {path: sha256_file(path) for path in corpus_files(config.corpus.decontaminate)},
        "llm": lambda: _llm_hashes(config),
        "pretrain": lambda: {path: sha256_file(path) for path in corpus_files(config.pretrain.files)},
        "evaluate": lambda: _evaluation_hashes(config),
    }


def _llm_hashes(config: MineConfig) -> dict[str, str]:
    """The files of a model that is asked in this process; a server's are not here."""
    if config.llm.kind != "model" or not asks_llm(config):
        return {}
    return {config.llm.model: hash_model(resolve(config.llm.model))}


def _evaluation_hashes(config: MineConfig) -> dict[str, str]:
    from ntk_jax.data.sources import source_hashes
    from ntk_jax.pipelines.common.reading import reading_of

    return source_hashes(config.evaluate.files, reading_of(config, "evaluate"))
