"""The part of the page that a run of the select pipeline has: what was selected, what it did to accuracy, what it cost.

May import `report` and what stands below it. The closing text of a run (`terminal.py`) says the same from the same
findings.
"""

from ntk_jax.pipelines.select.report.assembly import part

__all__ = ["part"]
