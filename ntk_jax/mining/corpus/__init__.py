"""From files of web archives, records or text to de-duplicated chunks with their provenance: what mining reads.

Pure functions of a shard that write whole files (`process`), and three ways to run them: local processes (`local`), one
process a shard (whoever calls `process`), and Apache Beam (`beam`). May import `llm`, `models`, `data`, `storage` and
below.
"""
