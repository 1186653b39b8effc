"""What finding a model's gaps in a set of documents computes (adversarial questions, arXiv 2602.18137): chunks,
questions and answers, the gap between two models, the loop that widens it, and what is verified before a question is
kept.

Functions of texts, replies and numbers; which of them run, with what settings and in what order, the pipeline says. May
import `evaluation`, `training`, `llm`, `models` and below.
"""
