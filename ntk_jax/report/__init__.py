"""How a run directory is shown: one self-contained HTML page, and how numbers, tables and figures look on it.

It reads files only, so a page can be made again from an old run, and knows no pipeline: each brings its own part of
the page. May import `storage`, `errors` and what stands below them.
"""
