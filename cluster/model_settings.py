"""The settings of the model: where its checkpoint or its versions lie, and how its answers are parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from cluster.settings_group import Group
from experts.versions import BadVersion, check_name

EMBEDDED_NAME = "tiny-r1"
EMBEDDED_VERSION = "v1"
PROFILES = ("7b", "16b", "32b")  # cluster/profiles/*.yaml


def is_file(profile: str) -> bool:
    """Whether a profile is named by its file."""
    return profile.endswith((".yaml", ".yml"))


class Model(Group):
    """Which model is served, and how its answers are parsed."""

    profile: str | None = Field(
        None,
        description="Settings under all others that are given: for a tier's checkpoint on 8 A100-80GB ("
        + ", ".join(PROFILES)
        + "), or those of a YAML file, such as `moray tune` and `moray plan profile` write. null: none.",
    )
    path: Path | None = Field(
        None,
        description="Directory of a Hugging Face checkpoint. A relative path in a YAML file is taken from that file's "
        "directory. null: the model of model.store.",
    )
    store: Path | None = Field(
        None,
        description="Directory of the model's versions, each made by `moray model add`; the same on every node. With "
        "model.path there is one version without a name, and nothing to roll. null: the embedded model, tiny-r1.",
    )
    version: str | None = Field(
        None,
        description="Version of model.store that a new cluster serves; a running one is taken to another by `moray "
        f"rollout`. null: {EMBEDDED_VERSION} for the embedded model.",
    )
    name: str | None = Field(
        None,
        min_length=1,
        description="The model's name in the API. null: tiny-r1 for the embedded model, else the name of model.path or "
        "model.store.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of weights and activations. auto: float32 for the embedded model on a CPU (bfloat16 "
        "changes its tokens with the order of the shards' sums), else vLLM's choice from config.json.",
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Longest prompt plus answer, tokens. null: what the model's config.json allows."
    )
    reasoning_parser: str | None = Field(
        None,
        description="vLLM's parser that separates the thinking from the answer. null: deepseek_r1 for the embedded "
        "model, none for another. 'none' turns it off.",
    )
    tool_call_parser: str | None = Field(
        None, description="vLLM's parser for tool calls, e.g. hermes. null: tool calls are not parsed."
    )

    @field_validator("profile")
    @classmethod
    def _known(cls, profile: str | None) -> str | None:
        if profile is not None and profile not in PROFILES and not is_file(profile):
            raise ValueError(f"there is no profile {profile!r}; there are {', '.join(PROFILES)}, and FILE.yaml")
        return profile

    @field_validator("version")
    @classmethod
    def _a_name(cls, version: str | None) -> str | None:
        if version is not None:
            try:
                check_name(version)
            except BadVersion as error:
                raise ValueError(str(error)) from None
        return version

    @property
    def embedded(self) -> bool:
        return self.path is None and self.store is None

    @property
    def served_name(self) -> str:
        own = self.path or self.store
        return self.name or (EMBEDDED_NAME if own is None else own.name)

    @property
    def store_directory(self) -> Path | None:
        """Where the versions are, the embedded ones included. None: the model has none."""
        return None if self.path is not None else self.store or _embedded_store()

    @property
    def version_name(self) -> str:
        """The version that a new cluster serves. "": the model has none."""
        return self.version or (EMBEDDED_VERSION if self.embedded else "")

    @property
    def directory(self) -> Path:
        """The checkpoint's directory, the embedded one's included."""
        return self.path or (self.store or _embedded_store()) / self.version_name


def _embedded_store() -> Path:
    from experts.tiny_r1 import store_path

    return Path(store_path())
