"""A Serve application of Moray's shape without engines: what is built by `build` is what KubeRay would have built."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application


@serve.deployment(name="Replica", num_replicas=1, ray_actor_options={"num_cpus": 0.5})
class Replica:
    def __init__(self, folder: str) -> None:
        (Path(folder) / f"replica-{os.getpid()}").write_text(str(time.time()))


@serve.deployment(name="Gateway", num_replicas=1, ray_actor_options={"num_cpus": 0.5}, user_config={"version": "v1"})
class Gateway:
    def __init__(self, folder: str, replicas: Any) -> None:
        self._folder, self._replicas = Path(folder), replicas
        (self._folder / f"gateway-{os.getpid()}").write_text(str(time.time()))

    def reconfigure(self, user_config: Any) -> None:
        with (self._folder / "told").open("a") as told:
            told.write(f"{os.getpid()} {user_config['version']}\n")

    def __call__(self) -> str:
        return "ok"


def build(args: dict[str, str]) -> Application:
    return Gateway.bind(args["folder"], Replica.bind(args["folder"]))  # type: ignore[attr-defined]
