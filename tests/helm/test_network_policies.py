"""Who may talk to whom: the chart's network policies, evaluated as a cluster would."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cases import CASES, MONITORING, OPEN
from helms import NAMESPACE, Object
from validation import pods

Render = Callable[..., list[Object]]


class Party(NamedTuple):
    """A pod, or an address outside the cluster."""

    labels: Mapping[str, str]
    namespace: str = NAMESPACE
    address: str = "10.1.2.3"


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for wanted in selector.get("matchExpressions", []):
        assert wanted["operator"] == "In"
        if labels.get(wanted["key"]) not in wanted["values"]:
            return False
    return True


def is_peer(peer: Mapping[str, Any], of_policy: str, party: Party) -> bool:
    if "ipBlock" in peer:
        return ipaddress.ip_address(party.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if not party.labels:
        return False
    if "namespaceSelector" in peer:
        if peer["namespaceSelector"] and not selects(
            peer["namespaceSelector"], {"kubernetes.io/metadata.name": party.namespace}
        ):
            return False
    elif party.namespace != of_policy:
        return False
    return selects(peer.get("podSelector", {}), party.labels)


def one_way(policies: list[Object], direction: str, pod: Party, other: Party, protocol: str, port: int) -> bool:
    """Whether what leaves (Egress) or reaches (Ingress) `pod` may pass."""
    rules, isolated = [], False
    for policy in policies:
        spec = policy["spec"]
        if direction in spec["policyTypes"] and pod.namespace == NAMESPACE and selects(spec["podSelector"], pod.labels):
            isolated = True
            rules += spec.get(direction.lower(), [])
    side = {"Ingress": "from", "Egress": "to"}[direction]
    return not isolated or any(
        (not rule.get(side) or any(is_peer(peer, NAMESPACE, other) for peer in rule[side]))
        and (not rule.get("ports") or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def reaches(objects: list[Object], source: Party, target: Party, port: int, protocol: str = "TCP") -> bool:
    policies = [each for each in objects if each["kind"] == "NetworkPolicy"]
    return one_way(policies, "Egress", source, target, protocol, port) and one_way(
        policies, "Ingress", target, source, protocol, port
    )


def parties(objects: list[Object]) -> dict[str, Party]:
    """The release's pods by component, and those around them."""
    ours = {pod["metadata"]["labels"]["app.kubernetes.io/component"]: pod for _, pod in pods(objects)}
    return {component: Party(pod["metadata"]["labels"]) for component, pod in ours.items()} | {
        "client": Party({"app": "chat"}),
        "stranger": Party({"app": "other"}, namespace="others"),
        "operator": Party({"app.kubernetes.io/name": "kuberay-operator"}, namespace="kuberay"),
        "prometheus": Party({"app.kubernetes.io/name": "prometheus"}, namespace="monitoring"),
        "dns": Party({"k8s-app": "kube-dns"}, namespace="kube-system"),
        "redis": Party({"app": "redis"}),
        "internet": Party({}, address="93.184.216.34"),
    }


def test_what_is_not_named_is_denied(render: Render) -> None:
    objects = render(OPEN)
    who = parties(objects)
    for component in ("head", "worker", "node-watcher", "test"):
        for port in (22, 443, 6379, 8000, 8080, 8265, 10001):
            assert not reaches(objects, who["stranger"], who[component], port), (component, port)
    for component in ("head", "worker", "test"):
        for port in (80, 443, 6443):
            assert not reaches(objects, who[component], who["internet"], port), (component, port)
    # The dashboard, by which whoever reaches it runs code: not even for pods of this namespace, or those that serve.
    for who_else in ("client", "prometheus", "node-watcher", "test"):
        assert not reaches(objects, who[who_else], who["head"], 8265), who_else
        assert not reaches(objects, who[who_else], who["head"], 6379), who_else
        assert not reaches(objects, who[who_else], who["worker"], 30005), who_else


def test_one_policy_alone_denies_all_to_every_pod_of_the_release(render: Render) -> None:
    """So that a pod that the others forget is not open for that."""
    objects = render(OPEN)
    alone = [
        each
        for each in objects
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"].endswith("default-deny")
    ]
    who = parties(objects)
    for component in ("head", "worker", "node-watcher", "test"):
        for other in ("head", "client", "dns", "internet"):
            for way in ("Ingress", "Egress"):
                assert not one_way(alone, way, who[component], who[other], "TCP", 53), (component, other, way)


def test_rays_pods_talk_to_each_other_on_any_port(render: Render) -> None:
    objects = render(OPEN)
    who = parties(objects)
    for source in ("head", "worker"):
        for target in ("head", "worker"):
            for port in (6379, 8265, 10002, 41234):
                assert reaches(objects, who[source], who[target], port), (source, target, port)


def test_every_pod_resolves_names(render: Render) -> None:
    objects = render(OPEN)
    who = parties(objects)
    for component in ("head", "worker", "node-watcher", "test"):
        assert reaches(objects, who[component], who["dns"], 53, "UDP") and reaches(
            objects, who[component], who["dns"], 53
        )
        assert not reaches(objects, who[component], who["stranger"], 53, "UDP")
        node_local = Party({}, address="169.254.20.10")
        assert reaches(objects, who[component], node_local, 53, "UDP")


def test_clients_reach_the_gateways_port_and_no_other(render: Render) -> None:
    objects = render(OPEN | {"service": {"port": 8888}})
    who = parties(objects)
    for component in ("client", "node-watcher", "test"):
        assert reaches(objects, who[component], who["worker"], 8888), component
        assert not reaches(objects, who[component], who["head"], 8888), component
    named = {"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "ingress"}}}]}}
    narrower = render(OPEN | named)
    assert reaches(narrower, Party({"app": "ingress"}), who["worker"], 8000)
    assert not reaches(narrower, who["client"], who["worker"], 8000)


def test_the_operator_reaches_the_dashboard(render: Render) -> None:
    objects = render(OPEN)
    who = parties(objects)
    assert reaches(objects, who["operator"], who["head"], 8265) and not reaches(
        objects, who["operator"], who["worker"], 8265
    )


def test_prometheus_reaches_every_port_with_metrics(render: Render) -> None:
    objects = render(OPEN | {"monitoring": MONITORING})
    who = parties(objects)
    named = {
        (component, port["name"]): port["containerPort"]
        for component, pod in (
            (pod["metadata"]["labels"]["app.kubernetes.io/component"], pod) for _, pod in pods(objects)
        )
        for port in pod["spec"]["containers"][0].get("ports", [])
        if "metrics" in port["name"] or component == "node-watcher"
    }
    assert {
        ("head", "metrics"),
        ("worker", "metrics"),
        ("worker", "gw-metrics-0"),
        ("node-watcher", "http"),
    } <= named.keys()
    for (component, _), port in named.items():
        assert reaches(objects, who["prometheus"], who[component], port), (component, port)
        assert not reaches(objects, who["client"], who[component], port), (component, port)
    assert reaches(objects, who["prometheus"], who["worker"], 8000)  # where it asks for the gateways' ports
    assert not reaches(render(OPEN), who["prometheus"], who["worker"], 8000)


def test_the_head_reaches_redis_and_nobody_else_does(render: Render) -> None:
    objects = render(CASES["redis-and-state"])
    who = parties(objects)
    assert reaches(objects, who["head"], who["redis"], 6379) and not reaches(objects, who["head"], who["redis"], 6380)
    assert not reaches(objects, who["worker"], who["redis"], 6379)
    assert not reaches(objects, who["head"], who["client"], 6379)
    assert not reaches(render(OPEN), who["head"], who["redis"], 6379)


def test_those_with_a_token_reach_the_kubernetes_api(render: Render) -> None:
    plain, scaled = render(OPEN), render(CASES["autoscaled"])
    who = parties(plain)
    for port in (443, 6443):
        assert reaches(plain, who["node-watcher"], who["internet"], port)
        assert not reaches(plain, who["head"], who["internet"], port)
        assert reaches(scaled, who["head"], who["internet"], port)
        assert not reaches(scaled, who["worker"], who["internet"], port)


def test_pods_that_copy_a_model_reach_its_store(render: Render) -> None:
    objects = render(CASES["object-storage"])
    who = parties(objects)
    assert reaches(objects, who["worker"], who["internet"], 443) and not reaches(
        objects, who["worker"], who["internet"], 80
    )
