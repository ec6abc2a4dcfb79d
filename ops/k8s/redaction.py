"""What must not leave the cluster in a bundle: taken out of objects and texts. Pure.

Objects: literal values of environment variables (only references to where they come from, and those that KubeRay or the
chart set and that tell nothing, stay), fields that are named like secrets, what follows a flag that is named like one,
what kubectl and managers remember of the object beside itself. Texts: what looks like a key, a password in a URL, a
bearer token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

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
    r"(password|passwd|secret|token|credentials?|api[-_]?keys?|access[-_]?key|private[-_]?key|authorization)$",
    re.IGNORECASE,
)
_FLAG = re.compile(r"--[\w-]{0,40}(?:password|passwd|secret|token|key)", re.IGNORECASE)
_REMEMBERED = ("kubectl.kubernetes.io/last-applied-configuration",)
# None begins with a repetition: a log may have lines of a million characters.
_TEXTS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}"), rf"\1 {GONE}"),
    # Greedy: a password may have an @ of its own.
    (re.compile(r"(://[^\s/:@]*):[^\s/]+@"), rf"\1:{GONE}@"),
    # key: value, KEY=value, "key": "value", also as JSON in a string of JSON, and as a list.
    (
        re.compile(
            r"(?i)((?:password|passwd|secret|api[-_]?keys?|access[-_]?key(?:[-_]id)?|[-_]token|authtoken)"
            r"\\*[\"']?\s*[:=]\s*)"
            r"""(?:\[[^\]\n]*|\\+"(?:[^"\\\n]|\\+[^"\\\n])*\\+"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\\*["']?[^\s"',;&}\]\\]+)"""
        ),
        rf"\1{GONE}",
    ),
    (re.compile(rf"""(?i)({_FLAG.pattern}(?:=|\s+))(?!-)(?:'[^'\n]*'|"[^"\n]*"|\S+)"""), rf"\1{GONE}"),
    (re.compile(rf"""(?i)({_FLAG.pattern}["']\s*,\s*["'])(?!-)[^"'\n]+"""), rf"\1{GONE}"),
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
        return {key: _field(str(key), part) for key, part in value.items() if key != "managedFields"}
    if isinstance(value, list):
        return [thing(part) for part in value]
    return text(value) if isinstance(value, str) else value


def _field(key: str, part: Any) -> Any:
    if key == "env" and isinstance(part, list):
        return [_variable(one) for one in part]
    if key in ("env", "env_vars") and isinstance(part, Mapping):  # Ray's runtime_env
        return {name: value if name in OPEN_ENVIRONMENT else GONE for name, value in part.items()}
    if key in ("args", "command") and isinstance(part, list):
        return _arguments(part)
    if key in ("serveConfigV2", "runtimeEnvYAML") and isinstance(part, str):
        return _yaml(part)
    if key == "annotations" and isinstance(part, Mapping):
        return {name: thing(value) for name, value in part.items() if name not in _REMEMBERED}
    if key in ("data", "stringData", "binaryData") and isinstance(part, Mapping):
        return dict.fromkeys(part, GONE)
    if _SECRET_FIELD.search(key):
        if isinstance(part, str):
            return GONE
        if isinstance(part, list):
            return [GONE if isinstance(one, str) else thing(one) for one in part]
        if isinstance(part, Mapping) and isinstance(part.get("value"), str):  # KubeRay's redisPassword
            part = {**part, "value": GONE}
    return thing(part)


def _arguments(given: list[Any]) -> list[Any]:
    """Of a command line: a flag's value may be the item after it."""
    flags = [None, *given]
    return [
        GONE if isinstance(before, str) and _FLAG.fullmatch(before) and not str(one).startswith("-") else thing(one)
        for before, one in zip(flags, given, strict=False)
    ]


def _yaml(said: str) -> str:
    """As an object: its indentation tells what is an environment variable."""
    try:
        value = yaml.safe_load(said)
        return str(yaml.safe_dump(thing(value), sort_keys=False)) if isinstance(value, (dict, list)) else text(said)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that there is not
        return text(said)


def _variable(one: Any) -> Any:
    """Of a container's `env`: a Secret's value never stands there, its name does."""
    if isinstance(one, Mapping) and one.get("value") and one.get("name") not in OPEN_ENVIRONMENT:
        return {"name": one.get("name"), "value": GONE}
    return thing(one)
