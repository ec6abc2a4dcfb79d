"""Values that the chart is rendered with. Each of its switches is on in one of them and off in another."""

from __future__ import annotations

from typing import Any

# What the chart asks for, as it guesses neither of them.
OPEN: dict[str, Any] = {"auth": {"allowUnauthenticated": True}}
KEYS: dict[str, Any] = {
    "auth": {"existingSecret": "moray-keys"},
    "nodeWatcher": {"existingSecret": "watcher-key"},
    "settings": {"gateway": {"operators": ["ops"]}},
}
STORE: dict[str, Any] = {
    "name": "qwen3",
    "version": "v1",
    "store": {"kind": "persistentVolumeClaim", "persistentVolumeClaim": {"claimName": "models", "subPath": "qwen3"}},
}
MONITORING: dict[str, Any] = {
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "scrapeConfig": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Moray"}},
}
TOLERATION = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}


def tier(profile: str) -> dict[str, Any]:
    return OPEN | {"profile": profile, "model": STORE}


CASES: dict[str, dict[str, Any]] = {
    "embedded": OPEN,
    "7b": tier("7b"),
    "16b": tier("16b"),
    "32b": tier("32b"),
    "keys": KEYS | {"service": {"type": "NodePort", "annotations": {"a": "b"}}},
    "host-path": tier("7b")
    | {
        "model": STORE | {"store": {"kind": "hostPath", "hostPath": {"path": "/models"}, "verify": False}},
        "compileCache": {"hostPath": "/data/compiled"},
    },
    "object-storage": tier("7b")
    | {
        "model": STORE
        | {
            "store": {
                "kind": "objectStorage",
                "objectStorage": {
                    "versions": ["v1", "v2"],
                    "image": "example.org/copier:1.2",
                    "command": 'copy "s3://models/$VERSION" "$TARGET"',
                    "env": [{"name": "REGION", "value": "eu"}],
                    "existingSecret": "s3",
                },
            }
        }
    },
    "monitored": KEYS
    | {"monitoring": MONITORING | {"scrapeConfig": {"enabled": True, "existingSecret": "scraper-key", "key": "key"}}},
    "redis-and-state": OPEN
    | {
        "ray": {
            "redis": {"enabled": True, "address": "redis:6379", "existingSecret": "redis", "passwordKey": "password"}
        },
        "state": {"existingClaim": "moray-state"},
        "compileCache": {"existingClaim": "moray-compiled"},
        "settings": {
            "alarms": {"state_path": "/var/lib/moray/alarms", "webhook": "http://hooks/1"},
            "rollout": {"audit_path": "/var/lib/moray/audit.jsonl"},
        },
        "networkPolicy": {"redis": [{"podSelector": {"matchLabels": {"app": "redis"}}}]},
    },
    "autoscaled": OPEN
    | {
        "settings": {"autoscaling": {"max_replicas": 4, "min_replicas": 1}},
        "ray": {"workerGroups": [{"name": "cpu", "replicas": 2, "maxReplicas": 6, "minReplicas": 1}]},
    },
    "incremental": tier("32b")
    | {
        "ray": {
            "upgrade": {"strategy": "NewClusterWithIncrementalUpgrade", "groupsPerStep": 1, "deletionDelaySeconds": 30}
        },
        "gatewayApi": {"className": "istio"},
    },
    "ingress": KEYS
    | {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["llm.example.org"],
            "annotations": {"nginx.ingress.kubernetes.io/proxy-buffering": "off"},
            "tls": [{"hosts": ["llm.example.org"], "secretName": "llm-tls"}],
        },
    },
    "gateway-api": OPEN
    | {
        "gatewayApi": {
            "enabled": True,
            "parentRefs": [{"name": "public", "namespace": "gateways", "sectionName": "https"}],
            "hostnames": ["llm.example.org"],
        },
        "service": {"type": "LoadBalancer", "loadBalancerClass": "nlb", "loadBalancerSourceRanges": ["10.0.0.0/8"]},
    },
    "placed": tier("32b")
    | {
        "image": {
            "repository": "example.org/moray",
            "digest": "sha256:" + "0" * 64,
            "pullSecrets": [{"name": "registry"}],
        },
        "ray": {
            "auth": {"existingSecret": "ray-token"},
            "head": {"nodeSelector": {"role": "head"}, "tolerations": [TOLERATION]},
            "workerGroups": [
                {
                    "name": "rack-a",
                    "gpus": 8,
                    "cpus": 48,
                    "memory": "480Gi",
                    "nodeSelector": {"rack": "a"},
                    "tolerations": [TOLERATION],
                    "affinity": {
                        "podAntiAffinity": {
                            "requiredDuringSchedulingIgnoredDuringExecution": [
                                {
                                    "topologyKey": "kubernetes.io/hostname",
                                    "labelSelector": {"matchLabels": {"moray.dev/worker-group": "rack-a"}},
                                }
                            ]
                        }
                    },
                    "topologySpreadConstraints": [],
                    "runtimeClassName": "nvidia",
                    "priorityClassName": "serving",
                    "rayLabels": {"rack": "a"},
                },
                {"name": "rack-b", "gpus": 4, "cpus": 24.5, "replicas": 1},
            ],
        },
        "rollout": {"steps": [0.05, 0.5], "gates": {"errors": 0.01}},
    },
    "bare": OPEN
    | {
        "nodeWatcher": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "ray": {"auth": {"enabled": False}, "upgrade": {"strategy": "None"}},
        "settings": {"gateway": {"haproxy": False, "count": 2}, "router": {"max_queue": 2000000}},
        "fullnameOverride": "llm",
    },
}
