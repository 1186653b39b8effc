"""What `ntk-jax doctor` checks of the config of a mining run."""

from __future__ import annotations

from ntk_jax.engine.doctor import Check, Doubt
from ntk_jax.errors import UserError
from ntk_jax.mining.corpus.files import corpus_files
from ntk_jax.models.hub import resolve
from ntk_jax.pipelines.common.doctor import model_checks
from ntk_jax.pipelines.common.encoder import load_encoder
from ntk_jax.pipelines.common.llm import check_llm
from ntk_jax.pipelines.mine.config import MineConfig, asks_llm
from ntk_jax.pipelines.mine.label import own_labels
from ntk_jax.pipelines.mine.pretrain import check_files
from ntk_jax.pipelines.mine.seeds import own_seeds


def checks(config: MineConfig) -> list[Check]:
    """The corpus' files, own seeds, the encoder, and whoever writes seeds and judges."""
    return [
        ("corpus.files", lambda: _corpus(config)),
        ("own seeds", lambda: _seeds(config)),
        *([("labelled documents", lambda: _documents(config))] if config.label.source == "documents" else []),
        ("encoder", lambda: _encoder(config)),
        *([*model_checks(config), ("text to train on", lambda: _texts(config))] if config.pretrain.tokens else []),
        *([("language model", lambda: _llm(config))] if asks_llm(config) else []),
    ]


def _corpus(config: MineConfig) -> str:
    files = corpus_files(config.corpus.files)
    return f"{len(files):,} files, {files[0].path} first"


def _seeds(config: MineConfig) -> str:
    found = own_seeds(config)
    return f"{len(found):,} of your own" if found else "none of your own; the language model writes all"


def _documents(config: MineConfig) -> str:
    found = own_labels(config)
    return f"{len({row['document'] for row in found}):,} documents, {len(found):,} chunks"


def _encoder(config: MineConfig) -> str | Doubt:
    section = config.encoder
    embedder = load_encoder(section)
    heart, other, contract = embedder.embed(
        ["The heart pumps blood.", "Blood is pumped by the heart.", "The contract ends in May."]
    )
    if not heart @ other > heart @ contract:
        raise UserError(
            f"{section.path}: two sentences of the same meaning are no nearer than two of different meaning; check "
            "encoder.pooling and the prefixes, or take another encoder"
        )
    text = f"{embedder.name}: {embedder.dim} numbers a text, reads {embedder.max_tokens} tokens at once"
    return Doubt(f"{text}; {embedder.note}") if embedder.note else text


def _texts(config: MineConfig) -> str | Doubt:
    check_files(config.pretrain)
    section, evaluated = config.pretrain, config.evaluate.files
    left = [file for file in evaluated if file not in config.corpus.decontaminate]
    replay = f"{len(section.replay):,} files" if section.replay else "a random draw of the corpus"
    held_out = len(section.held_out) + len(section.held_out_general)
    text = f"replayed: {replay}; perplexity is taken of {held_out:,} held-out files"
    if not left:
        return text
    return Doubt(
        f"{text}; what is mined may hold questions of {left[0]}, for corpus.decontaminate does not name it: add "
        "evaluate.files there"
    )


def _llm(config: MineConfig) -> str:
    """Nothing is asked of a server: a call may cost money."""
    check_llm(config.llm)
    if config.llm.kind == "model":
        return f"{resolve(config.llm.model)}, in this process"
    return f"{config.llm.model}, at a server that is asked when the run begins"
