"""What is struck on another host of the Ray cluster: an actor there, pinned to its node, is the arm."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

from ops.drill.choosing import DrillRefused
from ops.drill.strikes import Hold, LocalArm
from replicas.router_handle import NAMESPACE, actor_name

_REACHED_IN_S = 5.0
_ANSWER_LIMIT_S = 60.0  # the actor's process has to start first


def join(address: str | None, why: str) -> None:
    """Joins the Ray cluster as a driver, for the rest of this process.

    `address`: of its head, HOST:PORT or ray://HOST:PORT; None: of what runs on this host. `why`: what is out of reach
    without it. Raises DrillRefused.
    """
    import ray

    try:
        _check_reachable(address)
        ray.init(address=address or "auto", logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # Ray has many; none of them is ours
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DrillRefused(
            f"{why}, and Ray's cluster cannot be joined ({cause}): run the drill on a machine of the cluster, or give "
            "its head's address with --ray-address or RAY_ADDRESS"
        ) from None


def kill_router(model: str) -> None:
    """Kills the actor; Ray starts it anew. Raises DrillRefused."""
    import ray

    try:
        ray.kill(ray.get_actor(actor_name(model), namespace=NAMESPACE), no_restart=False)
    except ValueError:
        raise DrillRefused(
            f"the Ray cluster that was joined has no router of {model}: it is another cluster; give --ray-address"
        ) from None


def _check_reachable(address: str | None) -> None:
    """Ray would try for minutes. Raises OSError."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_IN_S).close()


class RayArm:
    """`Arm` on an engine of another host, once the cluster has been joined."""

    def __init__(self, replica: Mapping[str, Any]) -> None:
        """Raises DrillRefused: its host is no node of this cluster, or the engine is not there."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        host = str(replica["address"]).rpartition(":")[0].strip("[]")
        nodes = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeManagerAddress"] == host]
        if not nodes:
            raise DrillRefused(
                f"replica {replica['id']} runs on {host}, which is no node of the Ray cluster that was joined: give "
                "that cluster's address with --ray-address"
            )
        there = ray.remote(num_cpus=0)(LocalArm)
        self._actor = there.options(scheduling_strategy=NodeAffinitySchedulingStrategy(nodes[0], soft=False)).remote(
            dict(replica)
        )
        if not self._call("reaches"):
            raise DrillRefused(f"no process {replica['engine']['pid']} of replica {replica['id']} was found on {host}")

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=_ANSWER_LIMIT_S)
        except ray.exceptions.RayError as error:
            cause = (str(getattr(error, "cause", None) or error).strip().splitlines() or [""])[-1]
            raise DrillRefused(f"the replica's host does not do it: {cause}") from None

    def kill(self) -> None:
        self._call("kill")

    def hold(self, how: Hold) -> None:
        self._call("hold", how)

    def holds(self) -> bool:
        return bool(self._call("holds"))

    def let_go(self) -> None:
        self._call("let_go")
