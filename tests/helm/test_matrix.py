"""The chart over values and Kubernetes versions: both Helms make the same of it, and the API's schemas take it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cases import CASES
from helms import CHART, Cluster, Helm, Helm3, Helm4, Object, Values
from validation import CRDS, WITHOUT_SCHEMA, core_problem, custom_problem, is_custom, kind, pods

VERSIONS = ("1.20.0", "1.25.0", "1.30.0", "1.33.0")
Rendered = Callable[[Helm, Values, Cluster], list[Object]]


@pytest.mark.parametrize("case", CASES)
def test_both_helms_render_equal_objects(case: str, helm3: Helm3, helm4: Helm4, rendered: Rendered) -> None:
    for version in VERSIONS:
        by_3 = rendered(helm3, CASES[case], Cluster(version))
        by_4 = rendered(helm4, CASES[case], Cluster(version))
        assert by_3 == by_4, version
        assert len({(kind(each), each["metadata"]["name"]) for each in by_3}) == len(by_3), "a name twice"


@pytest.mark.parametrize("case", CASES)
def test_core_objects_and_pods_pass_kubernetes_strict_schemas(case: str, render: Callable[..., list[Object]]) -> None:
    found = []
    for version in VERSIONS:
        objects = render(CASES[case], version)
        core = [each for each in objects if not is_custom(each)]
        found += [problem for each in core if (problem := core_problem(each, version))]
        found += [f"{where}: {problem}" for where, pod in pods(objects) if (problem := core_problem(pod, version))]
    assert found == []


@pytest.mark.skipif(not CRDS.exists(), reason=f"no schemas of KubeRay and the Prometheus operator: {CRDS} is not there")
@pytest.mark.parametrize("case", CASES)
def test_custom_objects_pass_their_crds(case: str, render: Callable[..., list[Object]]) -> None:
    custom = [each for each in render(CASES[case]) if is_custom(each)]
    assert "ray.io/v1/RayService" in map(kind, custom)
    assert [problem for each in custom if kind(each) not in WITHOUT_SCHEMA and (problem := custom_problem(each))] == []


def test_the_matrix_turns_every_kind_of_object_on_and_off(render: Callable[..., list[Object]]) -> None:
    by_case = {case: {kind(each) for each in render(values)} for case, values in CASES.items()}
    everything = set().union(*by_case.values())
    always = set.intersection(*by_case.values())
    assert {kind.rsplit("/", 1)[-1] for kind in everything} >= {
        "RayService", "ConfigMap", "ServiceAccount", "Deployment", "ClusterRole", "Role", "NetworkPolicy",
        "PodDisruptionBudget", "Ingress", "HTTPRoute", "PodMonitor", "ScrapeConfig", "PrometheusRule", "Pod",
        "Service",
    }  # fmt: skip
    assert {kind.rsplit("/", 1)[-1] for kind in always} == {"RayService", "ConfigMap", "ServiceAccount", "Pod"}


@pytest.mark.parametrize("case", CASES)
def test_lint_is_clean(case: str, helm3: Helm3, helm4: Helm4) -> None:
    assert helm3.lint(CHART, CASES[case]) == "" and helm4.lint(CHART, CASES[case]) == ""
