"""Why replicas of a Serve deployment do not start, out of what Serve says of it. Pure."""


def cause_of(message: str) -> str:
    """The cause in one line, out of the traceback in a deployment's message. "": it tells of no failure."""
    if "Traceback" not in message and "failed to start" not in message.lower():
        return ""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line or "EngineFailed" in line or "Unknown" in line]
    return causes[-1] if causes else lines[-1]
