"""What `ntk-jax doctor` checks of the config of a run of questions."""

from __future__ import annotations

from ntk_jax.engine.doctor import Check, Doubt
from ntk_jax.models.hub import resolve
from ntk_jax.pipelines.common.doctor import model_checks
from ntk_jax.pipelines.common.encoder import load_encoder
from ntk_jax.pipelines.common.llm import check_llm
from ntk_jax.pipelines.question.config import QuestionConfig, judges, player
from ntk_jax.pipelines.question.documents import check_documents, sampled_documents
from ntk_jax.pipelines.question.state import same_model


def checks(config: QuestionConfig) -> list[Check]:
    """The documents, the target, whoever plays the other roles, and the encoder that compares questions."""
    return [
        ("documents.files", lambda: _documents(config)),
        *model_checks(config),
        ("roles", lambda: _roles(config)),
        *([("encoder", lambda: _encoder(config))] if config.ask.cosine < 1 else []),
    ]


def _documents(config: QuestionConfig) -> str:
    check_documents(config)
    return f"{sum(1 for _ in sampled_documents(config)):,} documents"


def _roles(config: QuestionConfig) -> str | Doubt:
    """Nothing is asked of a server: a call may cost money."""
    shown = []
    for role in ("expert", "generator", "reviser", "judge", "second_judge", "target"):
        owner = player(config, role)
        if owner is None or (role == "judge" and not judges(config)):
            continue
        section = getattr(config, owner)
        check_llm(section, owner)
        place = f"{resolve(section.model)}, here" if section.kind == "model" else f"{section.model}, at a server"
        shown.append(f"{role}: {place if owner == role else owner}")
    text = "; ".join(shown)
    if same_model(config):
        return Doubt(f"{text}; target and expert are one model, so gaps show only what the passage adds")
    return text


def _encoder(config: QuestionConfig) -> str | Doubt:
    section = config.encoder
    found = load_encoder(section)
    text = f"{found.name}: {found.dim} numbers a question"
    return Doubt(f"{text}; {found.note}") if found.note else text
