"""What must not leave the cluster in a bundle: taken out of objects and texts. Pure.

Objects: literal values of environment variables (only references to where they come from, and those that KubeRay or the
chart set and that tell nothing, stay), fields that are named like secrets, what kubectl and managers remember of the
object beside itself. Texts: what looks like a key, a password in a URL, a bearer token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GONE = "(left out)"
# Values that a diagnosis needs. An exact list: a pattern would let the next password through.
OPEN_ENVIRONMENT = frozenset(
    {
        "MORAY_CONFIG", "RAY_ADDRESS", "RAY_IP", "FQ_RAY_IP", "RAY_PORT", "RAY_CLUSTER_NAME", "RAY_NODE_TYPE_NAME",
        "RAY_CLOUD_INSTANCE_ID", "KUBERAY_GEN_RAY_START_CMD", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS", "NCCL_DEBUG", "VLLM_LOGGING_LEVEL", "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
        "RAY_gcs_rpc_server_reconnect_timeout_s",
    }
)  # fmt: skip
_SECRET_FIELD = re.compile(
    r"(password|passwd|secret|token|credentials?|api[-_]?key|access[-_]?key|private[-_]?key|authorization)$",
    re.IGNORECASE,
)
_REMEMBERED = ("kubectl.kubernetes.io/last-applied-configuration",)
_TEXTS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {GONE}"),
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", re.IGNORECASE), rf"\1:{GONE}@"),
    (
        re.compile(
            r"(?i)([\w.-]*(?:password|passwd|secret|api[-_]?key|access[-_]?key(?:[-_]id)?|session[-_]token|auth[-_]?token)"
            r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]+"
        ),
        rf"\1{GONE}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{16,}\b|\bsk-[A-Za-z0-9_-]{16,}\b"), GONE),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"), GONE),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), GONE),
)


def text(said: str) -> str:
    for pattern, instead in _TEXTS:
        said = pattern.sub(instead, said)
    return said


def thing(value: Any) -> Any:
    """A JSON value, with what is secret left out."""
    if isinstance(value, Mapping):
        return {key: _field(key, part) for key, part in value.items() if key != "managedFields"}
    if isinstance(value, list):
        return [thing(part) for part in value]
    return text(value) if isinstance(value, str) else value


def _field(key: str, part: Any) -> Any:
    if key == "env" and isinstance(part, list):
        return [_variable(one) for one in part]
    if key == "annotations" and isinstance(part, Mapping):
        return {name: thing(value) for name, value in part.items() if name not in _REMEMBERED}
    if key in ("data", "stringData", "binaryData") and isinstance(part, Mapping):
        return dict.fromkeys(part, GONE)
    if _SECRET_FIELD.search(key):
        if isinstance(part, str):
            return GONE
        if isinstance(part, Mapping) and isinstance(part.get("value"), str):  # KubeRay's redisPassword
            part = {**part, "value": GONE}
    return thing(part)


def _variable(one: Any) -> Any:
    """Of a container's `env`: a Secret's value never stands there, its name does."""
    if isinstance(one, Mapping) and one.get("value") and one.get("name") not in OPEN_ENVIRONMENT:
        return {"name": one.get("name"), "value": GONE}
    return thing(one)
