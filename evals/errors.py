"""The one error that is the user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """What the user asked for cannot be done as asked. It ends in one line and exit code 2."""
