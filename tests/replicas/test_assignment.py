"""What is to be served, in Ray's key-value store; the store itself is a dictionary here."""

import msgspec
import pytest
from ray.experimental import internal_kv

from replicas import assignment
from replicas.assignment import Assignment, Mirror

EVENT_LOOPS = ("asyncio",)
CANARY = Assignment(
    revision=3,
    stable="v1",
    new_replica="v1",
    directories={"v1": "/models/v1", "v2": "/models/v2"},
    traffic={"v1": 0.9, "v2": 0.1},
    mirror=Mirror(version="v2", share=0.05),
)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[bytes, bytes], bytes]:
    """(namespace, key) -> value."""
    values: dict[tuple[bytes, bytes], bytes] = {}

    def put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> None:
        assert overwrite
        values[namespace, key] = value

    monkeypatch.setattr(internal_kv, "_internal_kv_put", put)
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: values.get((namespace, key)))
    return values


def test_what_was_written_is_read(stored):
    assert assignment.read("moray-tiny") is None
    assignment.write("moray-tiny", CANARY)
    assert list(stored) == [(b"moray", b"assignment:moray-tiny")]
    assert assignment.read("moray-tiny") == CANARY and assignment.read("another") is None
    later = msgspec.structs.replace(CANARY, revision=4, traffic=None, mirror=None)
    assignment.write("moray-tiny", later)
    assert assignment.read("moray-tiny") == later


def test_what_is_no_assignment_is_not_taken_for_one(stored):
    stored[b"moray", assignment.key("moray-tiny")] = b'{"revision": 1}'
    with pytest.raises(msgspec.DecodeError, match="stable"):
        assignment.read("moray-tiny")


@pytest.mark.parametrize("traffic", [{}, {"v1": 0.0}, {"v1": 1.0, "v2": -0.1}, {"v1": float("nan")}])
def test_traffic_has_shares(traffic):
    with pytest.raises(ValueError, match="traffic shares"):
        Assignment(revision=1, stable="v1", new_replica="v1", traffic=traffic)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_mirrors_share_is_one(share):
    with pytest.raises(ValueError, match="share"):
        Mirror(version="v2", share=share)


def test_it_travels_to_a_gateway():
    encoded = msgspec.msgpack.encode(CANARY)
    assert msgspec.msgpack.decode(encoded, type=Assignment) == CANARY
