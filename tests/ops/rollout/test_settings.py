"""What the settings say is what the decisions' own defaults are, unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cluster.config import ConfigError, Machine, load
from cluster.rollout_settings import Rollout
from ops.controller.spec import controller_spec
from ops.rollout.settings import RolloutsSpec, rollouts_spec
from ops.rollout.spec import RolloutSpec


def made(overrides: dict[str, object], config: Path | None = None) -> RolloutsSpec:
    return rollouts_spec(load(config, {}, overrides, Machine(2, 0), to_run=False).settings)


def test_what_can_be_asked_for_can_be_set() -> None:
    spec = made({})
    named = {"version", "gates"} | set(Rollout.model_fields)
    assert not (set(RolloutSpec.__struct_fields__) | set(spec.defaults["gates"])) - named


def test_the_embedded_models_store_and_version() -> None:
    spec = made({})
    assert spec.version == "v1" and spec.store is not None and (Path(spec.store) / "v1" / "moray.json").is_file()
    assert controller_spec(load(None, {}, {}, Machine(2, 0)).settings).rollouts == spec


def test_a_model_path_has_no_versions(tmp_path: Path) -> None:
    spec = made({"model.path": str(tmp_path)})
    assert (spec.version, spec.store) == ("", None)


def test_what_is_set_counts_and_a_path_is_the_files(tmp_path: Path) -> None:
    config = tmp_path / "moray.yaml"
    config.write_text("rollout:\n  steps: [0.05, 0.2]\n  ttft_ratio: 1.1\n  audit_path: audit.jsonl\n")
    spec = made({"rollout.min_samples": "50"}, config)
    assert spec.audit_path == str(tmp_path / "audit.jsonl")
    asked = msgspec.convert(spec.defaults | {"version": "v2"}, RolloutSpec)
    assert (asked.steps, asked.gates.ttft_ratio, asked.min_samples) == ((0.05, 0.2), 1.1, 50)
    for text, steps in (("0.2", (0.2,)), ("0.1,0.5", (0.1, 0.5)), ("[0.1, 0.5]", (0.1, 0.5))):
        assert made({"rollout.steps": text}).defaults["steps"] == steps


@pytest.mark.parametrize("steps", ["[]", "[0.5, 0.1]", "[1.0]", "[0.1, 0.1]"])
def test_steps_are_shares_that_grow(steps: str) -> None:
    with pytest.raises(ConfigError, match="no shares that grow"):
        made({"rollout.steps": steps})
