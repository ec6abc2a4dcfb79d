"""The processes that a cluster's status names, found on this host, for those who strike them: drill and soak.

A status tells process ids, and they may be another host's. Nothing is struck for its number alone: an engine listens
on the port that its replica tells, a router bears Ray's title.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import psutil

from ops.errors import UserError
from ops.processes import Process, identify

_ROUTER_TITLE = "ray::Router"


class NotOurs(UserError):
    """A process of another user: no signal of ours reaches it."""


def engine_here(replica: Mapping[str, Any]) -> Process | None:
    """The process of a replica's engine core; None: it is not on this host, or not alive. Raises NotOurs.

    `replica`: one of `/moray/status`. With `engine.host: thread` it is the Serve replica's own process.
    """
    host, _, port = str(replica["address"]).rpartition(":")
    process = identify(int(replica["engine"]["pid"]))
    if process is None or not _is_own_address(host.strip("[]")):
        return None
    try:
        connections = psutil.Process(process.pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        raise NotOurs(_foreign(process)) from None
    listens = {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}
    return process if int(port) in listens else None


def router_here(status: Mapping[str, Any]) -> Process | None:
    """The router actor's process; None: it is not on this host, or not alive. Raises NotOurs."""
    process = identify(int(status["router"]["pid"]))
    if process is None:
        return None
    try:
        found = psutil.Process(process.pid)
        if not (found.cmdline() or [""])[0].startswith(_ROUTER_TITLE):
            return None
        found.cwd()  # another user's is not told
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        raise NotOurs(_foreign(process)) from None
    return process


def _foreign(process: Process) -> str:
    return f"process {process.pid} is another user's: run this as the user who runs the cluster, or as root"


def _is_own_address(host: str) -> bool:
    try:
        if ipaddress.ip_address(host).is_loopback:
            return True
    except ValueError:
        pass  # a name
    return any(address.address == host for of_one in psutil.net_if_addrs().values() for address in of_one)
