"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """A mistake in what the user asked for: one line that names the flag and the remedy.

    The command line prints it as ``error: …`` and exits with code 2; a library caller catches it as a ``ValueError``.
    """
