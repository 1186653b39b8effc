"""Tokenizers, prompts and chat templates."""

from __future__ import annotations

from files_found.case import Case

TITLE = "Tokenizers, prompts and templates"
CASES: list[Case] = []
