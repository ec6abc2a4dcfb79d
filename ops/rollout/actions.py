"""What a rollout can ask its shell to do: a closed set. Each may be asked for again, and is then as if asked once."""

import msgspec

from replicas.assignment import Mirror


class Verify(msgspec.Struct, frozen=True, tag=True):
    """Read the version's files and manifest; `Observed.check` tells what came of it."""

    version: str


class Assign(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Store this as the model's Assignment (its revision and directories are the caller's) and tell the router."""

    stable: str
    new_replica: str
    traffic: dict[str, float] | None
    mirror: Mirror | None = None


class SwapReplica(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Have the router give that replica this command. The same id again is the same command.

    Its streams may move to replicas of the same version. A replica that has the version already (it started with it)
    only has to check and probe it.
    """

    id: str
    replica_id: str
    version: str


class Drain(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Take that replica out of rotation, before its restart; its streams may move."""

    replica_id: str


class Restart(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """End that replica's process; Serve starts another, which loads the assignment's `new_replica`."""

    replica_id: str
    why: str


class Scale(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """So many replicas on top of those that the load asks for."""

    extra: int


Action = Verify | Assign | SwapReplica | Drain | Restart | Scale
