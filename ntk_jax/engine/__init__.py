"""The engine: runs the stages of any pipeline and knows none of them: configs, plans, locks, resume, blocks of stores,
estimates, checks, provenance.

May import `report` and all below it, and no pipeline.
"""
