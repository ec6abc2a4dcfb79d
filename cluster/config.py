"""The one place that reads settings: defaults < profile < YAML file < `MORAY_` variables < command line.

    loaded = load(Path("moray.yaml"), os.environ, {"gateway.port": 8001})
    loaded.settings.gateway.port, loaded.origins["gateway.port"]    # 8001, "command line"

A nested key of the environment is joined by two underscores: MORAY_GATEWAY__PORT=8001. A key that does not exist is
refused by name, with the file's line or the variable it came from and the nearest key that does exist.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.model_settings import PROFILES, is_file
from cluster.resolution import contradictions, lacking, resolve
from cluster.settings import Machine, Settings
from experts.vllm_plugin import EXPERT_PLAN, OF_A_REPLICA
from replicas.spare_core import PARENT, SPARES

__all__ = ["ConfigError", "Loaded", "Machine", "Settings", "load", "setting_keys", "this_machine"]

PREFIX = "MORAY_"
COMMAND_LINE = "command line"
DEFAULT = "default"
# Ours, but no settings: which session a process belongs to, where files lie, how a command is let in.
_NOT_SETTINGS = frozenset(
    {"MORAY_API_KEY", "MORAY_CONFIG", "MORAY_SESSION", "MORAY_STATE_DIR", OF_A_REPLICA, EXPERT_PLAN, SPARES, PARENT}
)
# Paths that are taken from the settings file's directory, or the caller's.
_PATHS = (
    ("model", "path"),
    ("model", "store"),
    ("engine", "tuned_kernels"),
    ("experts", "plan"),
    ("gateway", "keys_file"),
    ("alarms", "state_path"),
    ("alarms", "record_path"),
    ("rollout", "audit_path"),
)
# Kubernetes gives every pod such variables for a Service named moray or moray-…
_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")


class ConfigError(ValueError):
    """Settings that cannot be used. `str()` is one message that lists every problem, for a person to read."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  - {p}" for p in problems)
        super().__init__(problems[0] if len(problems) == 1 else f"{len(problems)} problems in the settings:\n{lines}")


@dataclass(frozen=True)
class Loaded:
    settings: Settings
    # Dotted key -> where its value comes from, for every setting.
    origins: Mapping[str, str]
    # What a session with these settings would miss on this machine; sentences.
    lacking: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Given:
    """One value somebody gave, before it is checked."""

    key: str
    value: Any
    origin: str


@dataclass
class _Sources:
    """What was given, weakest source first, and what was wrong with it."""

    given: list[_Given] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, key: str, value: Any, origin: str) -> None:
        if _is_known(key):
            self.given.append(_Given(key, value, origin))
        else:
            self.problems.append(_unknown(key, origin))


def load(
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    machine: Machine | None = None,
    to_run: bool = True,
    of_file: Collection[str] | None = None,
) -> Loaded:
    """Effective settings and the origin of each.

    Of `env` only the `MORAY_` variables count (None: no environment). `overrides` are dotted keys of the command line;
    their text values are read as the environment's are. `of_file`: the keys of the file that count; None: all. Raises
    ConfigError with every problem found; what is lacking on this machine is one if the settings are `to_run` here, not
    only to be shown.
    """
    machine = machine or this_machine()
    sources = _Sources()
    if file is not None:
        _read_yaml(file, sources)
    if of_file is not None and sources.given:
        # Another version's file may hold what this one does not know. That it can be read at all is asked for.
        sources = _Sources([given for given in sources.given if given.key in of_file])
    _read_env(env or {}, sources)
    for key, value in (overrides or {}).items():
        sources.add(key, _parsed(key, value) if isinstance(value, str) else value, COMMAND_LINE)
    by_key = {given.key: given for given in sources.given}
    if "model.profile" in by_key:
        by_key = _profile(by_key["model.profile"].value) | by_key
    settings = _validated(by_key, sources.problems)
    if sources.problems or settings is None:
        raise ConfigError(sources.problems)
    resolved = resolve(settings, machine)
    missing = lacking(resolved.settings, machine)
    problems = contradictions(resolved.settings, machine) + _key_problems(resolved.settings)
    if problems := (missing if to_run else []) + problems:
        raise ConfigError(problems)
    origins = dict.fromkeys(setting_keys(), DEFAULT)
    origins |= {key: f"derived ({reason})" for key, reason in resolved.reasons.items()}
    origins |= {key: given.origin for key, given in by_key.items() if key not in resolved.reasons}
    return Loaded(resolved.settings, origins, tuple(missing))


def _profile(name: Any) -> dict[str, _Given]:
    """The settings of a profile, by key. None for a name that there is not: the setting's own check refuses it."""
    own = isinstance(name, str) and is_file(name)
    if not own and name not in PROFILES:
        return {}
    file = Path(name).expanduser() if own else Path(__file__).parent / "profiles" / f"{name}.yaml"
    sources = _Sources()
    _read_yaml(file, sources)
    if any(given.key == "model.profile" for given in sources.given):
        sources.problems.append(f"the profile {file} names a profile itself: leave model.profile out of it")
    if sources.problems:
        raise ConfigError(sources.problems)
    return {given.key: given if own else replace(given, origin=f"profile {name}") for given in sources.given}


def _key_problems(settings: Settings) -> list[str]:
    """What is wrong with the key file; of a cluster's gateways each has its own, which this machine need not have."""
    if settings.gateway.keys_file is None or settings.ray.address is not None:
        return []
    from cluster.tenants import KeyFileError, read

    try:
        read(settings.gateway.keys_file)
    except KeyFileError as error:
        return list(error.problems)
    return []


def setting_keys() -> tuple[str, ...]:
    """Every setting's dotted key, in the tree's order."""
    groups = {group: info.annotation for group, info in Settings.model_fields.items()}
    return tuple(f"{group}.{name}" for group, cls in groups.items() for name in cls.model_fields)  # type: ignore[union-attr]


def this_machine() -> Machine:
    """CPUs that this process may use (affinity and cgroup limit), and NVIDIA GPUs that it may see."""
    cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cpus = max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2: the affinity is all there is to know
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if visible is not None:
        gpus = min(gpus, len([d for d in visible.split(",") if d.strip() not in ("", "-1")]))
    return Machine(cpus, gpus)


def _is_known(key: str) -> bool:
    return key in setting_keys() or key.startswith("engine.extra.")


def _unknown(key: str, origin: str) -> str:
    keys = setting_keys()
    if key in Settings.model_fields:
        inside = ", ".join(k for k in keys if k.startswith(f"{key}."))
        return f"{key} ({origin}) is a group of settings, not a value: {inside}"
    if "." not in key and (groups := difflib.get_close_matches(key, Settings.model_fields, n=1)):
        return f"unknown group {key} ({origin}): did you mean {groups[0]}?"
    # A right name in the wrong group is the commoner mistake; then a slip of the fingers anywhere in the key.
    name = key.rsplit(".", 1)[-1]
    near = [k for k in keys if k.rsplit(".", 1)[-1] == name]
    near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.7)
    near = near or [
        k for m in difflib.get_close_matches(name, [k.rsplit(".", 1)[-1] for k in keys], n=1) for k in keys
        if k.endswith(f".{m}")
    ]  # fmt: skip
    hint = f"did you mean {' or '.join(near)}?" if near else "`moray config` lists all settings"
    return f"unknown setting {key} ({origin}): {hint}"


def _parsed(key: str, text: str) -> Any:
    """The value behind a text of the environment or the command line: lists, maps and null are written as in YAML."""
    free_form = key.startswith("engine.extra.")
    if not (free_form or text[:1] in ("[", "{") or text == "null"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the field's own check names the key and the text


def _read_env(env: Mapping[str, str], sources: _Sources) -> None:
    for variable, text in sorted(env.items()):
        if not variable.startswith(PREFIX) or variable in _NOT_SETTINGS:
            continue
        if "__" not in variable and (_KUBERNETES.search(variable) or re.match(r"(tcp|udp|sctp)://", text)):
            continue
        key = variable.removeprefix(PREFIX).lower().replace("__", ".")
        if _is_known(key):
            sources.add(key, _parsed(key, text), variable)
            continue
        meant = [k for k in setting_keys() if k.replace(".", "_") == key.replace(".", "_")]
        if meant:
            right = PREFIX + meant[0].upper().replace(".", "__")
            sources.problems.append(f"unknown variable {variable}: did you mean {right} (two underscores)?")
        else:
            sources.problems.append(_unknown(key, variable))


def _read_yaml(file: Path, sources: _Sources) -> None:
    """Flatten the file to dotted keys, each with its line."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        sources.problems.append(f"cannot read the settings file {file}: {error.strerror or error}")
        return
    except UnicodeDecodeError:
        sources.problems.append(f"the settings file {file} is not UTF-8 text")
        return
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is not None:
            _walk(root, loader, file, sources)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        sources.problems.append(f"{place} is not valid YAML: {getattr(error, 'problem', None) or error}")
    finally:
        loader.dispose()


def _walk(root: yaml.Node, loader: yaml.SafeLoader, file: Path, sources: _Sources) -> None:
    seen: dict[str, str] = {}
    for name, node, place in _entries(root, file, sources, "the file"):
        if name not in Settings.model_fields:
            sources.problems.append(_unknown(name, place))
            continue
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            continue  # a group whose settings are all commented out
        for leaf, value, where in _entries(node, file, sources, name):
            key = f"{name}.{leaf}"
            if key in seen:
                sources.problems.append(f"{key} ({where}) was set before, at {seen[key]}")
            seen[key] = where
            made = loader.construct_object(value, deep=True)
            if (name, leaf) in _PATHS and isinstance(made, str):
                made = file.parent / Path(made).expanduser()
            if key == "model.profile" and isinstance(made, str) and is_file(made):
                made = str(file.parent / Path(made).expanduser())
            if key == "engine.extra" and isinstance(made, dict):
                for option, chosen in made.items():
                    sources.add(f"{key}.{option}", chosen, where)
            else:
                sources.add(key, made, where)


def _entries(node: yaml.Node, file: Path, sources: _Sources, what: str) -> Iterator[tuple[str, yaml.Node, str]]:
    place = f"{file}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        sources.problems.append(f"{what} ({place}) must be a group of `name: value` lines")
        return
    for key, value in node.value:
        yield str(key.value), value, f"{file}:{key.start_mark.line + 1}"


def _validated(by_key: Mapping[str, _Given], problems: list[str]) -> Settings | None:
    tree: dict[str, dict[str, Any]] = {}
    for key, given in by_key.items():
        group, name = key.split(".", 1)
        if name.startswith("extra."):
            tree.setdefault(group, {}).setdefault("extra", {})[name.removeprefix("extra.")] = given.value
        else:
            tree.setdefault(group, {})[name] = given.value
    for group, name in _PATHS:
        if isinstance(path := tree.get(group, {}).get(name), str | Path):
            tree[group][name] = Path(path).expanduser().absolute()
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        problems.extend(_readable(e, by_key) for e in error.errors())
        return None


def _readable(error: Any, by_key: Mapping[str, _Given]) -> str:
    path = [str(part) for part in error["loc"]]
    key = ".".join(path[:2])
    given = by_key.get(key) or next((g for k, g in by_key.items() if k.startswith(f"{key}.")), None)
    origin = given.origin if given else DEFAULT
    said = str(error["msg"]).removeprefix("Value error, ")
    said = said[:1].lower() + said[1:]
    return f"{key} ({origin}): {said}" + ("" if error["type"] == "value_error" else f", not {error['input']!r}")
