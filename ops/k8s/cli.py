"""The command `moray k8s`: arguments and output."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ops.errors import UserError
from ops.options import ApiKey, AsJson

if TYPE_CHECKING:
    from ops.k8s.calls import Api

app = typer.Typer(no_args_is_help=True, help="Operate Moray on Kubernetes: nodes, versions, what goes on.")

Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: the kubeconfig context's, or the pod's own.")
]
RayService = Annotated[
    str | None, typer.Option("--rayservice", metavar="NAME", help="Default: the only one of the namespace.")
]
Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", metavar="FILE", help="Default: KUBECONFIG, then ~/.kube/config.")
]
Context = Annotated[str | None, typer.Option("--context", metavar="NAME", help="Context of the kubeconfig.")]
Url = Annotated[
    str | None, typer.Option("--url", help="The gateway's address. Default: through the API server, by its Service.")
]


@app.callback()
def k8s() -> None:
    """Operate Moray on Kubernetes: nodes, versions, what goes on.

    With the rights of your kubeconfig; what is lacking is named. Nothing is forced: what Helm or somebody else manages
    is changed there, and the command to do so is told.
    """


@app.command(epilog="Examples: `moray k8s status -n moray` · `moray k8s status --json | jq '.nodes[].leave'`")
def status(
    namespace: Namespace = None,
    rayservice: RayService = None,
    url: Url = None,
    api_key: ApiKey = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Show the RayService, its pods by node, the replicas on them, the rollout that runs, and nodes to be left."""
    from rich.console import Console

    from ops.k8s import overview

    api, own = _connect(kubeconfig, context)
    found = overview.collect(api, namespace or own, rayservice, url, api_key)
    if as_json:
        _print_json(found)
        return
    console = Console()
    for part in overview.render(found):
        console.print(part)


@app.command(
    epilog="Examples: `moray k8s rollout v2 -n moray` · `moray k8s rollout v2 --watch`. What Helm installed: "
    "`helm upgrade moray helm/moray --reuse-values --set model.version=v2`, then `moray rollout watch --url …`",
)
def rollout(
    version: Annotated[str, typer.Argument(help="The version to serve; it lies in the model's store.")],
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it to its end, as `moray rollout watch`.")
    ] = False,
    namespace: Namespace = None,
    rayservice: RayService = None,
    url: Url = None,
    api_key: ApiKey = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Have another version rolled out: changes the RayService's user_config, which restarts nothing.

    KubeRay hands it to the gateways, and the controller rolls: canaries, gates, back by itself if it is worse.
    """
    from ops.k8s import pods, version_change
    from ops.k8s.gateway import reached
    from ops.rollout.cli import follow
    from ops.rollout.client import Client

    api, own = _connect(kubeconfig, context)
    service = pods.find(api, namespace or own, rayservice)
    name = service["metadata"]["name"]
    if version_change.version_of(service) == version:
        raise UserError(
            f"RayService {name} asks for {version} already. If that rollout went back, start another: "
            f"moray rollout start {version} --url URL"
        )
    if not watch:
        version_change.change(api, service, version)
        _say({"rayservice": name, "version": version}, f"RayService {name} asks for {version} now", as_json)
        return
    with reached(api, namespace or own, name, url) as gateway:
        client = Client(gateway, api_key)
        known = {one["id"] for one in _rollouts(client.report())}
        version_change.change(api, service, version)
        _say({"rayservice": name, "version": version}, f"RayService {name} asks for {version} now", as_json)
        follow(client, _begun(client, known, version), as_json)


STARTS_WITHIN_S = 120.0  # KubeRay looks every few seconds, the gateways have to agree for two


def _begun(client: Any, known: set[str], version: str) -> str:
    """The id of the rollout that came of it. Raises UserError."""
    from ops.gateway_calls import Away

    give_up_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < give_up_s:
        try:
            report = client.report()
        except Away:
            report = {}
        for one in _rollouts(report):
            if one["id"] not in known and one["to"] == version:
                return str(one["id"])
        time.sleep(1.0)
    said = f" ({report['note']})" if report.get("note") else ""
    raise UserError(
        f"no rollout to {version} began within {STARTS_WITHIN_S:.0f} s{said}: is KubeRay's operator running? "
        "`moray k8s status` shows what the gateways say"
    )


def _rollouts(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    current = report.get("current")
    return [*(report.get("history") or ()), *([current] if current else ())]


@app.command(
    "drain-node",
    epilog="Examples: `moray k8s drain-node gpu-7` · `moray k8s drain-node gpu-7 --evict --timeout 1800` · "
    "`moray k8s drain-node gpu-7 --undo`",
)
def drain_node(
    node: Annotated[str, typer.Argument(help="The node's name; `moray k8s status` shows them.")],
    evict: Annotated[
        bool, typer.Option("--evict", help="Then evict Moray's pods; disruption budgets are waited for.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Uncordon it and let its replicas take requests again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if no other replica takes requests.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", min=1.0, help="Seconds that all of it may take.")] = 600.0,
    namespace: Namespace = None,
    rayservice: RayService = None,
    url: Url = None,
    api_key: ApiKey = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Free a node of Moray: cordon it, move its streams to other replicas, wait until nothing runs there.

    Streams go on elsewhere where they were. Pods of others stay: `kubectl drain` moves those.
    """
    from rich.console import Console

    from ops.k8s import node_drain, pods
    from ops.k8s.gateway import reached

    if undo and (evict or force):
        raise typer.BadParameter("--undo takes the node back: leave out --evict and --force")

    def say(text: str) -> None:
        Console().print(text, highlight=False, soft_wrap=True)

    api, own = _connect(kubeconfig, context)
    namespace = namespace or own
    service = pods.find(api, namespace, rayservice)
    name = service["metadata"]["name"]
    there = node_drain.pods_on(api, namespace, service, node)
    until_s = time.monotonic() + timeout
    with reached(api, namespace, name, url) as gateway:
        here = node_drain.replicas_on(gateway, api_key, there)  # before anything is changed: can it be reached?
        if undo:
            others = node_drain.uncordon(api, node)
            say(f"{node} stays cordoned by {', '.join(others)}" if others else f"{node} is not cordoned any more")
            for replica_id in [] if others else node_drain.take_back(gateway, api_key, there):
                say(f"{replica_id} takes requests again")
            return
        node_drain.cordon(api, node)
        say(f"{node} is cordoned, {len(here)} replicas are there")
        # Once more: until it was cordoned, pods were placed there.
        there = node_drain.pods_on(api, namespace, pods.find(api, namespace, name), node)
        watcher = node_drain.a_watcher_lives(api, namespace, f"{name}-node-watcher")
        drained = node_drain.move_away(gateway, api_key, there, until_s, force=force, watcher=watcher, report=say)
        known = sorted({*drained, *(str(one["id"]) for one in here)})
        node_drain.wait_until_idle(gateway, api_key, known, until_s, say)
    if not evict:
        say(f"no request of this RayService runs on {node} any more" + ("; its pods stay there" if there else ""))
        return
    if any(pod.role == "head" for pod in there):
        say("Ray's head is among these pods: until it is back, nothing new is placed and no rollout goes on")
    node_drain.evict(api, namespace, there, until_s, say)
    say(f"no Ray pod of this RayService runs on {node} any more")


@app.command(
    epilog="Examples: `moray k8s diagnose -n moray` · `moray k8s diagnose -o trouble.tar.gz --log-lines 20000`"
)
def diagnose(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: moray-diagnose-TIME.tar.gz here.")
    ] = None,
    log_lines: Annotated[int, typer.Option("--log-lines", min=1, help="Last lines of each container's log.")] = 5000,
    namespace: Namespace = None,
    rayservice: RayService = None,
    url: Url = None,
    api_key: ApiKey = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Write a bundle for whoever looks into it: objects, events, logs, what the gateway says, metrics.

    Secrets are not asked for, and values of environment variables, keys and passwords are left out; read it before you
    hand it on all the same. What could not be had is named in MISSING.txt.
    """
    from rich.console import Console

    from ops.k8s import diagnosis

    api, own = _connect(kubeconfig, context)
    console = Console(stderr=True)
    with console.status("asking") as shown:
        bundle = diagnosis.collect(
            api, namespace or own, rayservice, url, api_key, log_lines, lambda part: shown.update(f"asking for {part}")
        )
    file = output or Path(time.strftime("moray-diagnose-%Y%m%d-%H%M%S.tar.gz", time.gmtime()))
    bundle.write(file)
    typer.echo(f"{file}: {len(bundle.parts)} parts, {len(bundle.missing)} could not be had")
    for part, why in bundle.missing.items():
        typer.echo(f"  {part}: {why}")


@app.command(
    "watch-nodes",
    epilog="Examples: `moray k8s watch-nodes --url http://moray-gateway:8000 --lease moray-node-watcher` (as the "
    "chart's watcher) · `moray k8s watch-nodes --url http://127.0.0.1:8000 --listen 127.0.0.1:8081`",
)
def watch_nodes(
    url: Annotated[str, typer.Option("--url", help="The gateway's address.")],
    lease: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Lease that one of several holds. Default: RAYSERVICE-node-watcher."),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="For /healthz, /readyz, /metrics.")] = "0.0.0.0:8081",
    namespace: Namespace = None,
    rayservice: RayService = None,
    api_key: ApiKey = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Move streams away from nodes that are cordoned, about to end, or broken, and take replicas back with their nodes.

    Runs until SIGTERM. Any number may run; the holder of the lease acts. It drains no replica that is the last.
    """
    from ops.k8s.running import run

    host, _, port = listen.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(f"--listen {listen}: write it as HOST:PORT, with a port of at most 65535")
    run(url.rstrip("/"), api_key, lease, (host.strip("[]"), int(port)), namespace, rayservice, kubeconfig, context)


def _connect(kubeconfig: Path | None, context: str | None) -> tuple[Api, str]:
    from ops.k8s.connect import connect

    return connect(kubeconfig, context)


def _say(told: Mapping[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(told) if as_json else sentence)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
