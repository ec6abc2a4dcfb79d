"""Values that the chart is installed with here, as an operator would give them."""

from __future__ import annotations

from typing import Any

_CLAIM = {"kind": "persistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models"}}
_OBJECTS = {
    "image": "registry.example/rclone:1.68",
    "command": 'rclone copy "models:$VERSION" "$TARGET"',
    "versions": ["v1", "v2"],
    "existingSecret": "bucket",
}
OPEN = {"auth": {"allowUnauthenticated": True}}
MONITORING = {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboards")}

# By what is special about each: the chart's ways to store models, its profiles, upgrades and autoscaling.
BY_CASE: dict[str, dict[str, Any]] = {
    "the embedded model": OPEN,
    "7b from a volume, keys, Redis": {
        "profile": "7b",
        "model": {"name": "seven", "version": "v1", "store": _CLAIM},
        "auth": {"existingSecret": "keys"},
        "nodeWatcher": {"existingSecret": "operator"},
        "ray": {"redis": {"enabled": True, "address": "redis.example:6379", "existingSecret": "redis"}},
    },
    "16b from the nodes' disks, an Ingress": OPEN
    | {
        "profile": "16b",
        "model": {"name": "sixteen", "version": "v1", "store": {"kind": "hostPath", "hostPath": {"path": "/models"}}},
        "ingress": {"enabled": True, "hosts": ["moray.example"]},
    },
    "32b from object storage, autoscaled": OPEN
    | {
        "profile": "32b",
        "model": {"name": "big", "version": "v1", "store": {"kind": "objectStorage", "objectStorage": _OBJECTS}},
        "settings": {"autoscaling": {"min_replicas": 1, "max_replicas": 2}},
    },
    "incremental upgrades": OPEN
    | {
        "ray": {"upgrade": {"strategy": "NewClusterWithIncrementalUpgrade"}},
        "gatewayApi": {"className": "istio"},
    },
    "monitoring": OPEN | {"monitoring": MONITORING},
}


def of_version(version: str) -> dict[str, Any]:
    """A model of a store, in this version."""
    return OPEN | {"model": {"name": "seven", "version": version, "store": _CLAIM}}
