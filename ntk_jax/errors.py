"""The one exception for a user's mistake; every room may raise it, only `cli.py` catches it (exit 2)."""


class UserError(Exception):
    """One clear line: what is wrong, where (file, line, key or example id), and the mend."""
