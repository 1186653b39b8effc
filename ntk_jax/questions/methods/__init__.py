"""Other ways to make training data out of the same documents, to compare questions with at an equal number of tokens.

One file a method: `documents`, `paraphrase`, `entities`, `facts`, `calibration`, `strategies`; `table` lists them.
`asked` holds what each is given and where it stops, `replies` reads what models write, `naming` finds a document's
entities for two of them. May import `questions` and what that may import.
"""
