"""Why the daemon did not do what it was asked."""

from __future__ import annotations

from salt.exceptions import CommandExecutionError


class Unavailable(CommandExecutionError):
    """The daemon did not do what it was asked, and may do it later."""

    # Whether the same was said a moment ago, of another call.
    is_told = False


class Refused(CommandExecutionError):
    """The daemon will never do what it was asked."""
