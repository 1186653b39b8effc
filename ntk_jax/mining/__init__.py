"""What mining a domain's text from a large corpus computes (DoPAMine, arXiv 2410.00260): seeds, the corpus' documents,
search, labels, the classifier that spreads them, and its audit.

Functions of texts, arrays and files; which of them run, with what settings and in what order, the pipeline says. May
import `evaluation`, `training`, `llm`, `models` and below.
"""
