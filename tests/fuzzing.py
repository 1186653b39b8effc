"""Mutated input for readers: what a case may end in, and how a case that ends otherwise is named.

A target is a function of a seed that makes one input from it and reads it. Good is a result or a `UserError` of one
short line; anything else is reported with its seed, which gives the same case again:

    python tests/fuzzing.py configs 17          # one case, in this process
    python tests/fuzzing.py configs 0 500       # cases 0 to 499, in child processes: native code may die
"""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from ntk_jax.errors import LONGEST, UserError

Target = Callable[[int], object]

# What replaces a value or is put beside it: other types, the ends of number ranges, and texts that readers choke on.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64 + 1, -(2**70), 10**400, 0.5, -0.0, float("nan"), float("inf"),
    1e308, "", " ", "x", "none", "null", "\0", "a\0b", "../../x", "/", ".", "\ud800", "\x1b[31m", "a\nb", "é" * 40,
    "y" * 100_000, "builtin:model", "1e400", "2026-13-45", [], [[]], {}, {"": ""},
    [None], [0, "a", {}], {"a": {"b": []}},
]  # fmt: skip


def deep(random_: random.Random) -> Any:
    """A value nested some levels or, now and then, very many."""
    value: Any = 1
    for _ in range(random_.choice([2, 20, 200])):
        value = [value] if random_.random() < 0.5 else {"k": value}
    return value


def mutated_bytes(data: bytes, random_: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or put in; or the file cut short."""
    out = bytearray(data)
    for _ in range(random_.choice([1, 1, 1, 2, 4, 16])):
        place = random_.randrange(len(out) + 1)
        kind = random_.randrange(7)
        if kind == 0 and out:
            out[min(place, len(out) - 1)] = random_.randrange(256)
        elif kind == 1:
            del out[place : place + random_.choice([1, 2, 8, 64, 1024])]
        elif kind == 2:
            out[place:place] = out[place : place + random_.choice([1, 8, 64])]
        elif kind == 3:
            out[place:place] = random_.randbytes(random_.choice([1, 2, 8]))
        elif kind == 4:
            out[place:place] = random_.choice(
                [b"\0", b"\xff\xfe", b"[" * 5000, b"{", b"}", b'"', b"9" * 5000, b"\n", b"&a ", b"*a "]
            )
        elif kind == 5:
            del out[place:]
        elif out:
            out[min(place, len(out) - 1)] ^= 1 << random_.randrange(8)
    return bytes(out)


def mutated_tree(tree: Any, random_: random.Random) -> Any:
    """A JSON value with one or a few of its values replaced, removed, renamed or doubled."""
    tree = json.loads(json.dumps(tree))
    for _ in range(random_.choice([1, 1, 1, 2, 5])):
        places = list(_places(tree))
        if not places:
            return random_.choice(ODD)
        home, key = random_.choice(places)
        kind = random_.randrange(6)
        if kind <= 2:
            home[key] = random_.choice(ODD)
        elif kind == 3:
            home[key] = deep(random_)
        elif kind == 4:
            del home[key]
        elif isinstance(home, dict):
            home[random_.choice(["", "x", "k" * 500, "\x1b", *map(str, home)])] = home.pop(key)
        else:
            home.insert(key, random_.choice([home[key], *ODD]))
    return tree


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def fault(target: Target, seed: int) -> str | None:
    """What is wrong with how a case ended; None where nothing is."""
    try:
        target(seed)
    except UserError as error:
        return unclear(str(error))
    except Exception:
        return traceback.format_exc()
    return None


def unclear(message: str) -> str | None:
    """Why a message is not one short clean line; None where it is."""
    odd = [c for c in message if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    if odd or len(message) > LONGEST or not message.strip():
        return f"the message has {len(message)} characters, odd ones {odd[:5]}: {message[:400]!r}"
    return None


def run_cases(name: str, first: int, count: int, before: Sequence[int] = ()) -> list[str]:
    """The faults of cases `before` and [first, first + count), run in child processes, each of which takes over where
    one died."""
    faults, cases = [], [*dict.fromkeys([*before, *range(first, first + count)])]
    while cases:
        child = subprocess.run(
            [sys.executable, __file__, name],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        lines = child.stdout.splitlines()
        begun = sum(line.startswith("case ") for line in lines)
        faults += [line.removeprefix("fault ") for line in lines if line.startswith("fault ")]
        if "end" in lines[-1:]:
            break
        last = cases[max(begun, 1) - 1]
        faults.append(f"{name} {last}: the process ended with {child.returncode}: {child.stderr[-1500:]}")
        cases = cases[begun:] if begun else []
    return faults


def _child(name: str, cases: Sequence[int]) -> None:
    target = load(name)
    for seed in cases:
        print(f"case {seed}", flush=True)
        wrong = fault(target, seed)
        if wrong:
            print(f"fault {name} {seed}: {json.dumps(wrong)}", flush=True)
    print("end", flush=True)


def load(name: str) -> Target:
    """The target of that name, in tests/fuzz_targets.py."""
    target: Target = getattr(importlib.import_module("fuzz_targets"), name)
    return target


def main() -> None:
    name, *numbers = sys.argv[1:]
    if not numbers:
        _child(name, json.load(sys.stdin))
    elif len(numbers) == 1:
        print(fault(load(name), int(numbers[0])) or "good")
    else:
        print("\n".join(run_cases(name, int(numbers[0]), int(numbers[1]))) or "all good")


if __name__ == "__main__":
    main()
