"""Seeds of the user's own: documents of any record file, or keywords."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.sources import Spec, count_records, read, read_chosen, sample_indices
from ntk_jax.errors import UserError, listed, shown
from ntk_jax.llm.usable import first_sentences
from ntk_jax.mining.seeds.seed import Seed, check_domains


def seeds_of_documents(
    spec: Spec,
    domain: str | None,
    domains: Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    max_words: int = 400,
    reading: Reading = AUTO,
) -> list[Seed]:
    """The documents of a source as seeds.

    Args:
        spec: what `read_records` reads; a record's text is its `text`, or its prompt and response, or its messages.
        domain: of all of them; None: each record names its own, under `domains` (a name or a list) or `domain`.
        domains: those that there are.
        limit: a seeded sample of so many; None: all.
        max_words: of a seed; a longer document is cut after the last whole sentence, for an encoder reads no more.

    Raises:
        UserError: as `read_records`; an unknown domain, a record without one, a record without text.
    """
    if domain is not None and domain not in domains:
        raise UserError(f"{shown(domain)} is no domain of this run; there are: {listed(domains)}")
    found = []
    for record in _records(spec, limit, seed, reading):
        where = f"{record['source']}, record {record['id']}"
        names = (domain,) if domain is not None else _named(record, where, domains)
        text = first_sentences(_text(record), max_words)
        if not text:
            raise UserError(f"{where}: there is no text in it; leave it out")
        facts = {"origin": "document", "source": record["source"], "document": record["id"]}
        kept = ("type", "length", "demeanour", "topic", "title")  # where the record is a seed already
        facts |= {key: record[key] for key in kept if isinstance(record.get(key), str)}
        found.append(Seed(f"{'+'.join(names)}-own-{record['id']}", text, names, facts))
    return found


def seeds_of_keywords(keywords: Mapping[str, Sequence[str]], domains: Mapping[str, str]) -> list[Seed]:
    """A seed of each keyword or phrase, with its domain's description behind it: a word alone has several meanings.

    keywords: {domain: words}. domains: {name: description}. Raises UserError: an unknown domain, a list that is no list
    of words, a word that is there twice.
    """
    domains = check_domains(domains)
    found = []
    for name, words in keywords.items():
        if name not in domains:
            raise UserError(f"keywords: {shown(name)} is no domain of this run; there are: {listed(domains)}")
        if isinstance(words, str) or not words or not all(isinstance(word, str) and word.strip() for word in words):
            raise UserError(f"keywords of {shown(name)}: give a list of words, found {shown(words)}")
        small = [word.strip().casefold() for word in words]
        if twice := [word for word in small if small.count(word) > 1]:
            raise UserError(f"keywords of {shown(name)}: {shown(twice[0])} is there twice; keep one of them")
        for number, word in enumerate(words):
            facts = {"origin": "keyword", "keyword": word.strip()}
            found.append(Seed(f"{name}-keyword-{number:05d}", f"{word.strip()} ({domains[name]})", (name,), facts))
    return found


def _records(spec: Spec, limit: int | None, seed: int, reading: Reading) -> Iterator[dict[str, Any]]:
    if limit is None:
        return read(spec, reading)
    chosen = sample_indices(count_records(spec), limit, seed)
    return read(spec, reading) if chosen is None else read_chosen(spec, (int(i) for i in chosen), reading)


def _text(record: Mapping[str, Any]) -> str:
    """The words of a record, whatever its form."""
    if isinstance(record.get("text"), str):
        return record["text"]
    if "messages" in record:
        return "\n\n".join(message["content"] for message in record["messages"])
    return "\n\n".join(part for part in (record["prompt"], record["response"]) if part)


def _named(record: Mapping[str, Any], where: str, domains: Sequence[str]) -> tuple[str, ...]:
    names = record.get("domains", record.get("domain"))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise UserError(f'{where}: it names no domain; add "domains": ["..."], or give the file for one domain')
    if unknown := [name for name in names if name not in domains]:
        raise UserError(f"{where}: {shown(unknown[0])} is no domain of this run; there are: {listed(domains)}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{where}: it names the domain {shown(twice[0])} twice; keep one of them")
    return tuple(names)


def seed_files(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """{domain or `*`: its files} of {domain: a file or a list of files}. Raises UserError: anything else."""
    found = {}
    for name, files in given.items():
        files = [files] if isinstance(files, (str, Path)) else files
        if not isinstance(files, (list, tuple)) or not files or not all(isinstance(f, (str, Path)) for f in files):
            raise UserError(f"own seeds of {shown(name)}: give a file or a list of files, found {shown(files)}")
        found[str(name)] = [str(file) for file in files]
    return found
