"""The process of `moray k8s watch-nodes`: its parts, its signals, its log."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

from ops.errors import UserError
from ops.k8s import pods
from ops.k8s.calls import Api
from ops.k8s.connect import connect
from ops.k8s.leadership import Leadership
from ops.k8s.node_metrics import Health, Metrics
from ops.k8s.node_watcher import NodeWatcher
from ops.k8s.refusals import ApiRefused

logger = logging.getLogger("moray.node_watcher")

START_PAUSE_S = 5.0


def run(
    url: str,
    api_key: str | None,
    lease: str | None,
    listen: tuple[str, int],
    namespace: str | None,
    rayservice: str | None,
    kubeconfig: Path | None,
    context: str | None,
) -> None:
    """Returns after SIGTERM or SIGINT, with the lease given back. Raises UserError."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    stop = threading.Event()
    api, own = connect(kubeconfig, context, stop)
    namespace = namespace or own
    metrics = Metrics()
    api.on_retry = metrics.retried
    watcher: NodeWatcher | None = None

    def end(number: int, _: FrameType | None) -> None:
        logger.info("%s: ending", signal.Signals(number).name)
        stop.set()
        if watcher is not None:
            watcher.wake()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        health = Health(
            listen,
            metrics,
            alive=lambda: watcher is None or watcher.alive,
            unready=lambda: "it is starting" if watcher is None else watcher.unready,
        )
    except OSError as error:
        raise UserError(f"--listen {listen[0]}:{listen[1]}: {error.strerror}") from None
    try:
        name = rayservice or _found(api, namespace, stop)
        if name is None:
            return
        lease = lease or f"{name}-node-watcher"
        leadership = Leadership(api, namespace, lease, f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}")
        watcher = NodeWatcher(api, namespace, name, url, api_key, leadership, metrics, stop)
        logger.info("watching the nodes of RayService %s/%s; lease %s, gateway %s", namespace, name, lease, url)
        watcher.run()
    finally:
        health.close()


def _found(api: Api, namespace: str, stop: threading.Event) -> str | None:
    """The only RayService's name, as soon as the API server answers; None: it is to stop. Raises UserError."""
    while not stop.is_set():
        try:
            return str(pods.find(api, namespace, None)["metadata"]["name"])
        except ApiRefused as refused:
            if not refused.passes:
                raise
            logger.warning("%s", refused)
            stop.wait(START_PAUSE_S)
    return None
