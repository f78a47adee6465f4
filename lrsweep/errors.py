"""The one exception for mistakes a user can mend, and the exit codes of the command line."""

DONE, USAGE, TRIAL_ERRORS, OUTSIDE_GRID, INTERRUPTED = 0, 2, 3, 4, 130
UNSTABLE = 1
"""A run that ``lrsweep detect`` was shown diverged, went non-finite or stalled; spikes that recovered do not count."""


class UserError(ValueError):
    """A mistake in what the user asked for: one line that names the flag and the remedy.

    The command line prints it as ``error: …`` and exits with code 2; a library caller catches it as a ``ValueError``.
    """
