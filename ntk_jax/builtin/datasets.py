"""The committed files' records: the pool, and each domain's training and test questions."""

from __future__ import annotations

import json
from typing import Any

from ntk_jax.builtin.domains import DOMAINS, train_words
from ntk_jax.builtin.families import FAMILIES
from ntk_jax.builtin.world import NOVEL, Dice

Record = dict[str, Any]

ROWS_PER_FAMILY = 230
TRAIN_FORMS = 2  # questions about each training word
FORMS = 4  # questions about each word, over training and test together


def pool() -> list[Record]:
    """Every family's rows, mixed. A family speaks of all novel words about equally often."""
    rows: list[Record] = []
    for family, (make, _) in FAMILIES.items():
        dice = Dice("pool", family)
        seen: set[str] = set()
        waiting: list[str] = []
        while len(seen) < ROWS_PER_FAMILY:
            waiting = waiting or dice.shuffled(NOVEL)
            word = waiting.pop()
            others = dice.sample([w for w in NOVEL if w != word], 8)
            prompt, response = make([word, *others], dice)
            if prompt not in seen:
                seen.add(prompt)
                rows.append({"task": family, "prompt": prompt, "response": response})
    rows = Dice("pool order").shuffled(rows)
    return [{"id": f"pool-{i:04d}", "source": "builtin", **row} for i, row in enumerate(rows)]


def domain_train(domain: str) -> list[Record]:
    """`TRAIN_FORMS` questions about each training word; every other word in them is a training word too."""
    return _questions(domain, train=True)


def domain_test(domain: str) -> list[Record]:
    """The remaining questions: all forms of all novel words but those asked in training."""
    return _questions(domain, train=False)


def files() -> dict[str, list[Record]]:
    """File name -> records, of everything in `data/`."""
    result = {"pool.jsonl": pool()}
    for domain in DOMAINS:
        result[f"{domain}.train.jsonl"] = domain_train(domain)
        result[f"{domain}.test.jsonl"] = domain_test(domain)
    return result


def to_jsonl(records: list[Record]) -> str:
    """The bytes of a file."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _questions(domain: str, train: bool) -> list[Record]:
    # The form of a training question, (word's number + 0..1) mod 4, differs between words, so that all forms occur.
    asked = {(word, (i + j) % FORMS) for i, word in enumerate(train_words(domain)) for j in range(TRAIN_FORMS)}
    words = train_words(domain) if train else NOVEL
    wanted = [(word, form) for word in words for form in range(FORMS) if ((word, form) in asked) == train]
    name = "train" if train else "test"
    dice = Dice(domain, name)
    records: list[Record] = []
    for i, (word, form) in enumerate(dice.shuffled(wanted)):
        prompt, choices, answer = DOMAINS[domain](word, words, form, i % 4, dice)
        records.append(
            {
                "id": f"{domain}-{name}-{i:03d}",
                "source": "builtin",
                "task": domain,
                "prompt": prompt,
                "response": choices[answer],
                "choices": choices,
                "answer": answer,
            }
        )
    return records
