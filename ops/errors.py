"""What the commands say instead of a traceback."""


class UserError(Exception):
    """Something a person can put right. `str()` is the whole message, with the way out; the command exits with 1."""
