"""Seeds: short texts that stand for a domain, written by a language model or the user's own, and how good they are.

`dimensions` is what a written seed is drawn from, `plan` draws, `prompts` asks, `replies` reads what came back, `write`
puts these together, `own` takes the user's documents and keywords, `duplicates`, `coverage` and `lexical` look at the
result, `seed` holds what a seed and its file are. May import `llm`, `data`, `storage` and below.
"""
