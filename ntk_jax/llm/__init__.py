"""Who answers a prompt: the in-process sampler on a model of this package, or any OpenAI-compatible server.

Around both: a cache, a ledger and a cap on what is spent. Knows nothing of what is asked and why. May import `models`,
`data`, `storage`, `parallel` and below.
"""
