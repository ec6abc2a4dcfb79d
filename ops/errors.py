"""What the commands say instead of a traceback."""


class UserError(Exception):
    """Something a person can put right. `str()` is the whole message, with the way out; the command exits with 1."""


def say_error(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
