"""A copy of a domain in which every question has another one's answer: a control of what a score sees.

    python scripts/shuffle_labels.py FILE [FILE ...] --out shuffled.jsonl [--seed 0]

The responses are permuted among the records, and with them `choices` and `answer` where a record has them; no record
has its own response again, unless more than half of them have the same. Everything else stays. A ranking that is the
same with this domain does not look at which answer belongs to which question. FILE: as data.domain of a config.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.sources import read_records
from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import make_folder, write_lines

ANSWER = ("response", "choices", "answer")


def main() -> None:
    """Reads, shuffles and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    read = [dict(record) for record in read_records(options.files)]
    records = shuffled(read, options.seed)
    same = sum(old["response"] == new["response"] for old, new in zip(read, records, strict=True))
    make_folder(options.out.parent)
    write_lines(options.out, (json.dumps(record, ensure_ascii=False) for record in records))
    print(f"{options.out}: {len(records):,} records, {same:,} of them with the answer they had")


def shuffled(records: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """The records with permuted answers. Raises UserError: a conversation, whose answers stand in its turns; all
    answers are the same."""
    if any("messages" in record for record in records):
        raise UserError("a record is a conversation, whose answers cannot be exchanged; give prompts and responses")
    answers = [record["response"] for record in records]
    if len(set(answers)) < 2:
        raise UserError("all answers are the same, so there is nothing to exchange; give a domain with different ones")
    random = np.random.default_rng(seed)
    order = random.permutation(len(records))
    for place in np.flatnonzero([answers[i] == answers[order[i]] for i in range(len(records))]):
        # An exchange that leaves both with another one's answer, if there is any.
        able = [
            other
            for other in random.permutation(len(records))
            if answers[order[other]] != answers[place] and answers[order[place]] != answers[other]
        ]
        if able:
            order[[place, able[0]]] = order[[able[0], place]]
    return [
        {key: value for key, value in record.items() if key not in ANSWER}
        | {key: records[place][key] for key in ANSWER if key in records[place]}
        for record, place in zip(records, order, strict=True)
    ]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"shuffle_labels.py: {error}") from None
