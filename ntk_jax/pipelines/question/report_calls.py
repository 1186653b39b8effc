"""Who was asked, on the page: the roles and who played them, what the other methods wrote, and the calls with their
tokens, failures and money."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ntk_jax.pipelines.question.report_ask import ASK, generations, role_rows
from ntk_jax.report.amounts import NOTHING, count, duration, finite, general
from ntk_jax.report.layout import Cell, Table
from ntk_jax.report.reading import RunDirectory, mapping, records
from ntk_jax.report.shown import Shown, Text, cut

SAME = "Target and expert are one model: gaps show only what the passage adds, and not what a stronger model knows."
_SUMMED = ("calls", "prompt_tokens", "completion_tokens", "repaired", "cut", "cached")
_METHOD = ["Method", "Records", "Tokens", "Asked for", "Missing", "Documents", "Chunks", "Calls", "Left out"]


def roles(run: RunDirectory) -> Shown:
    """Who plays which role, and what each was asked."""
    found = run.json(ASK)
    leads = [SAME] if run.pipelines["question"].facts.get("same") is True else []
    rows = role_rows(run)
    tables = [Table(["Role", "Model"], rows, "Who plays which role", text_columns=2)] if rows else []
    accounts = accounts_of(run)
    if accounts:
        calls = [
            [role, str(one["model"]), one["form"], *(_number(one, key) for key in _SUMMED)] for role, one in accounts
        ]
        header = ["Role", "Model", "Form", "Calls", "Tokens in", "Tokens out", "Repaired", "Cut", "From before"]
        caption = (
            "What each was asked. Repaired: read when it was asked once more; cut: ended by the most tokens; from "
            "before: replies to what had been asked before, in this start or an earlier one, which cost nothing"
        )
        tables.append(Table(header, calls, caption, text_columns=3))
    if money := _money(mapping(found.get("llm"))):
        tables.append(money)
    failed = [[role, count(n), Cell(why, class_="")] for role, one in accounts for why, n in one["failures"].items()]
    caption = "Replies that could not be used, by role and reason"
    folds = [("Replies that could not be used, by reason", _failures("Role", failed, caption))] if failed else []
    if finite(found.get("seconds")) is not None:
        leads.append(f"The stage took {duration(found['seconds'])}, over all its starts.")
    return Shown(leads=leads, tables=tables, folds=folds)


def accounts_of(run: RunDirectory) -> list[tuple[str, dict[str, Any]]]:
    """(role, its account over all generations) of the loop's roles, then of the other methods."""
    summed: dict[str, dict[str, Any]] = {}
    for found in generations(run):
        for role, account in mapping(found.get("voices")).items():
            _add(summed.setdefault(str(role).replace("_", " "), _empty()), mapping(account))
    for name, method in mapping(run.json(ASK).get("methods")).items():
        account = mapping(mapping(method).get("voice"))
        if finite(account.get("calls")):
            _add(summed.setdefault(f"method {name}", _empty()), account)
    return list(summed.items())


def _empty() -> dict[str, Any]:
    return {"model": "", "form": "", "failures": Counter(), **dict.fromkeys(_SUMMED)}


def _add(total: dict[str, Any], account: dict[str, Any]) -> None:
    total["model"] = str(account.get("model") or total["model"])
    total["form"] = str(account.get("form") or total["form"])
    for key in _SUMMED:
        if (number := finite(account.get(key))) is not None:
            total[key] = (total[key] or 0.0) + number
    for why, n in mapping(account.get("failures")).items():
        total["failures"][str(why)] += finite(n) or 0.0


def _number(account: dict[str, Any], key: str) -> str:
    return count(account[key])


def _failures(who: str, rows: list[list[object]], caption: str) -> Table:
    return Table([who, "How many", "Reason"], rows, caption)


def _money(found: dict[str, Any]) -> Table | None:
    rows = []
    for role, value in found.items():
        one = mapping(value)
        ended = ", ".join(f"{count(n)} {what}" for what, n in mapping(one.get("outcomes")).items())
        numbers = [count(one.get(key)) for key in ("attempts", "prompt_tokens", "completion_tokens")]
        rows.append([str(role).replace("_", " "), Cell(ended, class_=""), *numbers, general(one.get("spent"))])
    if not rows:
        return None
    if len(rows) > 1:
        known = [finite(mapping(value).get("spent")) or 0.0 for value in found.values()]
        rows.append(["all together", "", "", "", "", general(sum(known))])
    header = ["Section", "How attempts ended", "Attempts", "Tokens in", "Tokens out", "Spent"]
    caption = "What servers were asked and paid, with attempts that failed, in the unit of the prices"
    return Table(header, rows, caption, text_columns=2, total=len(rows) > 1)


def methods(run: RunDirectory) -> Shown:
    """What every other method wrote from the same chunks, with an example."""
    rows, leads, texts, failed = [], [], [], []
    for name, value in mapping(run.json(ASK).get("methods")).items():
        one = mapping(value)
        title, voice = str(one.get("title") or name), mapping(one.get("voice"))
        left = Counter({str(why): finite(n) or 0.0 for why, n in mapping(one.get("dropped")).items()})
        keys = ("records", "tokens", "asked_tokens", "missing_tokens", "documents", "chunks")
        rows.append(
            [title, *(count(one.get(key)) for key in keys), count(voice.get("calls")), count(sum(left.values()))]
        )
        left.update({str(why): finite(n) or 0.0 for why, n in mapping(voice.get("failures")).items()})
        failed += [[title, count(n), Cell(why, class_="")] for why, n in left.most_common() if n]
        if one.get("failed"):
            leads.append(f"{title} brought nothing: {one['failed']}.")
        elif finite(one.get("missing_tokens")):
            leads.append(f"{title} stays {count(one['missing_tokens'])} tokens below what was asked for.")
        texts += _example(run, str(name), title)
    if not rows:
        return Shown(missing=("No other method was asked for.",))
    caption = (
        "What the other methods wrote; tokens are of prompts and responses, left out is what was read but not used"
    )
    why = "Replies that could not be used and what was left out of others, by method and reason"
    folds = [("What was not used, by reason", _failures("Method", failed, why))] if failed else []
    return Shown(
        leads=leads,
        tables=[Table(_METHOD, rows, caption)],
        folds=folds,
        texts=[("An example of each", texts)] if texts else [],
    )


def _example(run: RunDirectory, name: str, title: str) -> list[Text]:
    """The record in the middle."""
    if "/" in name or "\\" in name:
        return []
    found = records(run.json_lines(f"ask/{name}.jsonl"))
    if not found:
        return []
    one = found[len(found) // 2]
    parts = [("question" if one.get("prompt") else "text", cut(one.get("prompt") or one.get("response")))]
    parts += [("answer", cut(one.get("response")))] if one.get("prompt") else []
    head = (title, str(one.get("document_id") or NOTHING), f"{count(len(found))} records")
    return [Text(tuple(map(cut, head)), tuple(parts))]
