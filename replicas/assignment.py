"""What a model's replicas are to serve: which version, from which directory, with which share of the traffic.

The controller writes it to Ray's own key-value store before it acts; a replica that starts and a router that starts
read it there. Without one a replica loads the directory of its spec, and traffic follows the number of replicas.
"""

import math

import msgspec

_NAMESPACE = b"moray"


class Mirror(msgspec.Struct, frozen=True, kw_only=True):
    """Of which requests a copy runs on which version; no client sees what comes of it."""

    version: str
    share: float  # of the unstarted requests, 0..1

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"a mirror's share is between 0 and 1, not {self.share}")


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be served. ValueError: a share that is none."""

    revision: int  # the writer counts it up; a later one replaces an earlier one
    stable: str  # the version that is served outside of rollouts
    new_replica: str  # the version that a starting replica loads
    directories: dict[str, str] = {}  # version -> checkpoint directory, the same on every node
    traffic: dict[str, float] | None = None  # shares of unstarted requests by version; None: by number of replicas
    mirror: Mirror | None = None
    extra: int = 0  # replicas on top of those that the load asks for, where autoscaling decides how many there are

    def __post_init__(self) -> None:
        shares = self.traffic
        if shares is not None and not (all(0.0 <= s < math.inf for s in shares.values()) and sum(shares.values()) > 0):
            raise ValueError(f"traffic shares are numbers from 0 on, of which one is larger, not {shares}")


def key(model: str) -> bytes:
    """Of the model's assignment in Ray's internal key-value store, namespace `moray`."""
    return f"assignment:{model}".encode()


def read(model: str) -> Assignment | None:
    """The model's assignment; None: nobody has written one. Blocking. msgspec.DecodeError: what is there is none."""
    from ray.experimental import internal_kv  # here, for a core's process imports this module and no Ray

    stored: bytes | None = internal_kv._internal_kv_get(key(model), namespace=_NAMESPACE)
    return None if stored is None else msgspec.json.decode(stored, type=Assignment)


def write(model: str, assignment: Assignment) -> None:
    """Replaces the model's assignment as a whole. Blocking; one writer, the model's controller."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(key(model), msgspec.json.encode(assignment), overwrite=True, namespace=_NAMESPACE)


def clear(model: str) -> None:
    """There is none any more. Blocking."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_del(key(model), namespace=_NAMESPACE)
