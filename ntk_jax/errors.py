"""The exceptions that are one line for the user; every package may raise them, and the command line catches them."""


class UserError(ValueError):
    """One clear line: what is wrong, where (file, line, parameter or example id), and how to put it right. Exit code 2.

    A ValueError too, so that a notebook or a service may catch it without knowing this package.
    """


class TryAgain(Exception):
    """One clear line: what failed outside, such as a network; the same command again goes on. Exit code 1."""
