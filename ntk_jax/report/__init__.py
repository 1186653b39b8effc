"""One self-contained HTML page from a finished run directory: tables, figures, examples, and the whole config.

Reads files only, so it can be made again from an old run; may import every room below it, and `errors`.
"""
