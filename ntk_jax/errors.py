"""The exceptions that are one line for the user; every room may raise them, only `cli.py` catches them."""


class UserError(Exception):
    """One clear line: what is wrong, where (file, line, key or example id), and the mend. Exit code 2."""


class TryAgain(Exception):
    """One clear line: what failed outside, such as a network; the same command again goes on. Exit code 1."""
