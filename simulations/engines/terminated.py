"""What ends a process that was told to end (SIGTERM)."""


class Terminated(SystemExit):
    """Ends the process with a clean-up, also in the middle of a device's task."""
