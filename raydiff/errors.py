"""The one exception that means "the user can fix this": what is wrong, where, and what to do."""

from __future__ import annotations


class UserError(Exception):
    """A bad input, told in one paragraph. The command line prints it and exits with code 2."""


class RunFailed(Exception):
    """A run that could not go on (not the user's input). The command line exits with code 1."""
