"""Every alert rule by promtool: it fires, not before its `for`, not just below its limit, and says the figures."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql import PROMTOOL, RULES, known_names, metric_names

from ops.anomaly.outcomes import BURNS, Objective

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: apt-get install prometheus")

Series = dict[str, str]  # a series -> its samples, in promtool's notation


@dataclass(frozen=True)
class Case:
    """One rule. Seconds; `true_s` is the evaluation at which the expression holds for the first time."""

    alert: str
    labels: dict[str, str]  # all that the alert has, but its name
    fires: Series
    true_s: int
    value: str  # as its description tells it
    quiet: tuple[Series, ...]  # each at its limit, or without one of the rule's conditions
    over: Series | None = None  # it fired, and is over at the end
    step_s: int = 15


M = 'model="m"'


def slo(missed: str, met: str) -> Series:
    return {
        f'moray_slo_requests_total{{{M},met="false"}}': missed,
        f'moray_slo_requests_total{{{M},met="true"}}': met,
    }


def ended(**endings: str) -> Series:
    return {f'moray_requests_total{{{M},version="",ending="{name}"}}': values for name, values in endings.items()}


def resumed(values: str) -> Series:
    return {f'moray_resumes_total{{{M},cause="lost"}}': values}


def queue(waiting: str, oldest: str = "0x80", grants: str = "0x80") -> Series:
    return {
        f'ray_moray_queue_requests{{{M},priority="0"}}': waiting,
        f"ray_moray_queue_oldest_seconds{{{M}}}": oldest,
        f"ray_moray_grants_total{{{M}}}": grants,
    }


def ready(replicas: str) -> Series:
    return {
        f'ray_moray_replicas{{{M},state="ready"}}': replicas,
        f'ray_moray_replicas{{{M},state="draining"}}': replicas.replace("1x", "0x"),
    }


def engine(running: str, steps: str) -> Series:
    return {
        f'ray_moray_running_requests{{{M},replica="r"}}': running,
        f'ray_moray_engine_steps_total{{{M},replica="r"}}': steps,
    }


def tokens(running: str, generated: str) -> Series:
    return {
        'vllm:num_requests_running{model_name="m",engine="0"}': running,
        'vllm:generation_tokens_total{model_name="m",engine="0"}': generated,
    }


def shards(*layers: str) -> Series:
    name = 'ray_moray_shard_load_max_over_mean{application="moray",replica="r",layer='
    return {f'{name}"{layer}"}}': values for layer, values in enumerate(layers)}


def up(job: str, values: str) -> Series:
    return {f'up{{job="{job}",instance="host:1"}}': values}


def phase(name: str, values: str) -> Series:
    return {f'ray_moray_rollout_phase{{{M},phase="{name}"}}': values}


def loads(replica: str, **versions: str) -> Series:
    return {
        f'ray_moray_model_version_info{{{M},version="{name}",replica="{replica}"}}': values
        for name, values in versions.items()
    }


def watchers(name: str, a: str, b: str, of: str = "") -> Series:
    """Of the two pods of a node watcher."""
    more = f',of="{of}"' if of else ""
    return {f'moray_node_watcher_{name}{{{NS},pod="{pod}"{more}}}': v for pod, v in (("a", a), ("b", b))}


NS = 'namespace="ns"'
GPU = 'ray_moray_gpu_utilization_ratio{gpu="0"}'
KV = f'ray_moray_kv_used_ratio{{{M},replica="r"}}'
LOST = f"ray_moray_replicas_lost_total{{{M}}}"
START = f"ray_moray_router_start_time_seconds{{{M}}}"
LAG = "ray_moray_watch_lag_seconds"
MEMORY = ('ray_node_mem_used{ip="10.0.0.1"}', 'ray_node_mem_total{ip="10.0.0.1"}')
HEALED = 'ray_moray_healings_total{action="restart",outcome="withheld"}'
ROLLED = f'ray_moray_rollouts_total{{{M},outcome="rolled-back"}}'
RAISED = f'ray_moray_alarm_raised{{alarm="ttft-drift",severity="ticket",{M},replica=""}}'
GATEWAYS = up("moray-gateway", "1x80")
PAGE, TICKET = {"severity": "page"}, {"severity": "ticket"}
MODEL = {"model": "m"}

CASES = (
    Case(
        "slo-burn-fast",
        MODEL | PAGE | {"window": "1h"},
        slo("0+15x90", "0+85x90"),
        60,
        "15%",
        (slo("0+14x90", "0+86x90"), slo("0+4x90", "0x90")),  # at 14 times; too few requests to say
        over=slo("0+30x60 1800x9", "0+70x60 4200+100x9"),  # the hour still burns, the last five minutes do not
        step_s=60,
    ),
    Case(
        "slo-burn-fast",
        MODEL | PAGE | {"window": "6h"},
        slo("0+7x90", "0+93x90"),
        300,
        "7%",
        (slo("0+6x90", "0+94x90"),),
        over=slo("0+7x72 504x8", "0+93x72 6696+100x8"),
        step_s=300,
    ),
    Case(
        "slo-burn-slow",
        MODEL | TICKET | {"window": "3d"},
        slo("0+2x900", "0+98x900"),
        300,
        "2%",
        (slo("0+1x900", "0+99x900"),),
        over=slo("0+2x800 1600x80", "0+98x800 78400+100x80"),
        step_s=300,
    ),
    Case(
        "error-burst",
        MODEL | PAGE,
        ended(DONE="0+1x40", ERROR="0x8 5x30"),
        135,
        "5",
        (ended(DONE="0+1x40", ERROR="0x8 4x30"), ended(DONE="0+4x40", ERROR="0x8 5x30")),
        over=ended(DONE="0+1x40", LOST="0x8 5x30"),
    ),
    Case(
        "shed-rate",
        MODEL | TICKET,
        ended(DONE="0+9x80", TOO_LATE="0+1x80"),
        45,
        "10%",
        (ended(DONE="0+19x80", QUEUE_FULL="0+1x80"), ended(DONE="0x80", TOO_LATE="0x20 25x60")),
    ),
    Case(
        "resume-storm",
        MODEL | PAGE,
        ended(DONE="0+2x60") | resumed("0x20 10x40"),
        315,
        "10",
        (ended(DONE="0+2x60") | resumed("0x20 9x40"), ended(DONE="0+6x60") | resumed("0x20 10x40")),
    ),
    Case(
        "stuck-queue",
        MODEL | PAGE,
        queue("3x40", "0x4 30x40"),
        75,
        "3",
        (queue("3x40", "20x40"), queue("3x40", "30x40", "0+1x40"), queue("0x40", "30x40")),
    ),
    Case(
        "no-replica-ready",
        MODEL | PAGE,
        ready("1x3 0x40") | queue("2x40"),
        60,
        "0",
        (ready("1x40") | queue("2x40"), ready("0x40") | queue("0x40")),  # one is there; scaled to zero
        over=ready("1x3 0x20 1x20") | queue("2x40"),
    ),
    Case(
        "no-replica-ready",
        MODEL | PAGE,
        ready("1x3 0x40") | queue("0x40") | {f'ray_moray_denials_total{{{M},ending="NO_REPLICA"}}': "0+1x40"},
        60,
        "0",
        (ready("1x3 0x40") | queue("0x40") | {f'ray_moray_denials_total{{{M},ending="TOO_LATE"}}': "0+1x40"},),
    ),
    Case(
        "gpu-idle-with-queue",
        TICKET,
        {GPU: "0.9x3 0.4x60"} | queue("1x80"),
        60,
        "40%",
        ({GPU: "0.5x80"} | queue("1x80"), {GPU: "0.4x80"} | queue("0x80")),
    ),
    Case(
        "up-but-not-serving",
        MODEL | PAGE | {"replica": "r", "sign": "no-step"},
        engine("4x40", "0+10x8 80x40"),
        180,
        "4",
        (engine("0x40", "80x40"), engine("4x40", "0+1x40")),
        over=engine("4x40", "0+10x8 80x16 90+10x15"),
    ),
    Case(
        "up-but-not-serving",
        MODEL | PAGE | {"sign": "no-token"},
        tokens("4x60", "0+10x8 80x60"),
        240,
        "4",
        (tokens("0x60", "80x60"), tokens("4x60", "0+1x60")),
    ),
    Case("replica-flapping", MODEL | PAGE, {LOST: "0x60 3x60"}, 915, "3", ({LOST: "0x60 2x60"},)),
    Case(
        "kv-exhausted",
        MODEL | TICKET,
        {KV: "0.5x3 0.96x40"} | queue("1x40"),
        60,
        "96%",
        ({KV: "0.95x40"} | queue("1x40"), {KV: "0.96x40"} | queue("0x40")),
    ),
    Case(
        "expert-imbalance",
        TICKET | {"application": "moray", "replica": "r"},
        shards("1x3 1.75x60", "1x3 1.5x60"),
        60,
        "1.625",
        (shards("1.5x80", "1.5x80"),),
    ),
    Case(
        "node-memory-full",
        TICKET | {"ip": "10.0.0.1"},
        {MEMORY[0]: "50x3 91x40", MEMORY[1]: "100x60"},
        60,
        "91%",
        ({MEMORY[0]: "90x40", MEMORY[1]: "100x40"},),
    ),
    Case(
        "gateway-down",
        PAGE | {"job": "moray-gateway", "instance": "host:1"},
        up("moray-gateway", "1x3 0x20"),
        60,
        "0",
        (up("moray-gateway", "1x40"), up("moray-gateway", "1x3 0x2 1x20")),
    ),
    Case(
        "router-down",
        PAGE,
        up("ray", "1x40") | ready("1x3 stale"),
        60,
        "",
        (up("ray", "1x40") | ready("0x40"), up("ray", "0x40")),  # Ray's port is down: another rule's matter
        over=up("ray", "1x40") | ready("1x3 stale _x9 1x20"),
    ),
    Case(
        "router-restarts",
        MODEL | TICKET,
        {START: "100x10 200x10 300x40"},
        330,
        "2",
        ({START: "100x10 200x60"},),
    ),
    Case(
        "controller-not-watching",
        PAGE,
        {LAG: "1x3 31x40"} | up("ray", "1x40"),
        60,
        "31",
        ({LAG: "30x40"} | up("ray", "1x40"), up("ray", "0x40")),
    ),
    Case(
        "controller-not-watching",
        PAGE,
        {LAG: "1x3 stale"} | up("ray", "1x40"),
        60,
        "1",
        ({LAG: "1x40"} | up("ray", "1x40"),),
    ),
    Case(
        "scrape-target-missing",
        PAGE | {"job": "ray", "instance": "host:1"},
        GATEWAYS | up("ray", "1x3 0x20"),
        60,
        "0",
        (GATEWAYS | up("ray", "1x80"), GATEWAYS | up("ray", "1x3 0x6 1x60")),
    ),
    Case(
        "scrape-target-missing",
        PAGE | {"job": "moray-gateway"},
        up("moray-gateway", "1x3 stale") | up("ray", "1x80"),
        60,
        "1",
        (GATEWAYS | up("ray", "1x80"),),
    ),
    Case(
        "last-replica-leaving",
        PAGE | {"namespace": "ns"},
        watchers("last_replicas", "0x3 2x20", "0x23"),
        60,
        "2",
        (watchers("last_replicas", "0x23", "0x23"), watchers("last_replicas", "0x3 2x3 0x20", "0x26")),
        over=watchers("last_replicas", "0x3 2x20 0x2", "0x25"),
    ),
    Case(
        "node-watcher-away",
        PAGE | {"namespace": "ns"},
        watchers("leader", "1x3 0x60", "0x63"),
        60,
        "0",
        (watchers("leader", "1x3 0x60", "0x6 1x57"),),  # the other one leads
        over=watchers("leader", "1x3 0x30 1x9", "0x42"),
    ),
    Case(
        "node-watcher-away",
        PAGE | {"namespace": "ns"},
        watchers("leader", "1x60", "0x60") | watchers("silence_seconds", "1x3 130x57", "1x60", "nodes"),
        60,
        "130",
        (
            watchers("leader", "1x60", "0x60") | watchers("silence_seconds", "1x60", "130x60", "nodes"),  # b waits
            watchers("leader", "1x60", "0x60") | watchers("silence_seconds", "120x60", "1x60", "nodes"),
            watchers("leader", "1x60", "0x60") | watchers("silence_seconds", "900x60", "1x60", "events"),
        ),
    ),
    Case(
        "node-watcher-away",
        PAGE | {"namespace": "ns"},
        {f'up{{job="moray-node-watcher",{NS},pod="a"}}': "1x3 0x60"},
        60,
        "0",
        ({f'up{{job="moray-node-watcher",{NS},pod="{pod}"}}': f"{up}x60" for pod, up in (("a", 0), ("b", 1))},),
    ),
    Case(
        "healing-withheld",
        PAGE | {"action": "restart", "outcome": "withheld"},
        {HEALED: "1x62 2x10"},  # the counter is there: what is older than 15 minutes is no news
        945,
        "1",
        ({HEALED.replace("withheld", "done"): "0x10 1x10"},),
    ),
    Case(
        "healing-withheld",
        PAGE | {"action": "restart", "outcome": "withheld"},
        {HEALED: "_x4 1x20"},  # it appears with its first event
        60,
        "1",
        ({HEALED: "0x20"},),
    ),
    Case(
        "rollout-rolled-back",
        MODEL | TICKET | {"outcome": "rolled-back"},
        {ROLLED: "_x4 1x20"},  # it appears with its first event
        60,
        "1",
        ({ROLLED.replace("rolled-back", "done"): "_x4 1x20"},),
    ),
    Case(
        "rollout-rolled-back",
        MODEL | TICKET | {"outcome": "failed"},
        {ROLLED.replace("rolled-back", "failed"): "1x62 2x10"},
        945,
        "1",
        ({ROLLED.replace("rolled-back", "failed"): "0x80"},),
    ),
    Case(
        "rollout-stuck",
        MODEL | TICKET | {"phase": "canary"},
        phase("canary", "0x3 1x80"),
        1200,
        "1",
        (phase("canary", "1x30 0x50"), phase("done", "1x80"), phase("rolled-back", "1x80")),
        over=phase("canary", "0x3 1x60 0x3"),
        step_s=300,
    ),
    Case(
        "rollout-stuck",
        MODEL | PAGE | {"phase": "rolling-back"},
        phase("rolling-back", "0x3 1x60"),
        240,
        "1",
        (phase("rolling-back", "1x20 0x30"), phase("rolled-back", "1x80")),
        step_s=60,
    ),
    Case(
        "versions-mixed",
        MODEL | TICKET,
        loads("a", v1="1x60") | loads("b", v1="1x3 0x60", v2="_x3 1x60") | phase("canary", "1x3 0x60"),
        60,
        "2",
        (
            loads("a", v1="1x60") | loads("b", v2="1x60") | phase("canary", "1x60"),  # a rollout runs
            loads("a", v1="1x60") | loads("b", v1="1x60", v2="0x60"),
        ),
        over=loads("a", v1="1x50 0x10", v2="_x50 1x10") | loads("b", v2="1x60") | phase("done", "1x60"),
    ),
    Case(
        "controller-alarm",
        MODEL | TICKET | {"alarm": "ttft-drift", "source": "controller"},
        {RAISED: "0x3 1x20"},
        60,
        "1",
        ({RAISED: "0x20"},),
        over={RAISED: "0x3 1x10 0x10"},
    ),
)


def rules(kind: str = "alert") -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def rule_of(case: Case) -> dict[str, Any]:
    [rule] = [r for r in rules() if r["alert"] == case.alert and r["labels"].items() <= case.labels.items()]
    return rule


def seconds(duration: str) -> int:
    units = {"s": "seconds", "m": "minutes", "h": "hours"}
    return int(timedelta(**{units[duration[-1]]: int(duration[:-1])}).total_seconds())


def said(template: str, case: Case) -> str:
    """The annotation as Prometheus has to write it."""
    text = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: case.labels.get(m[1], ""), template)
    return re.sub(r"{{ \$value[^}]*}}", case.value, text)


def input_of(series: Series) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in series.items()]


def alerts_of(case: Case, more: str = "") -> str:
    """A selector of the rule's ALERTS; two rules of one name differ in a label."""
    chosen = "".join(f',{name}="{value}"' for name, value in case.labels.items() if name in ("window", "sign", "phase"))
    return f'ALERTS{{alertname="{case.alert}"{chosen}{more}}}'


def state(case: Case, at_s: int, expected: str | None) -> dict[str, Any]:
    """What ALERTS is then; None: nothing."""
    labels = {"alertname": case.alert, "alertstate": expected, **case.labels}
    text = ",".join(f'{name}="{value}"' for name, value in sorted(labels.items()))
    return {
        "expr": alerts_of(case),
        "eval_time": f"{at_s}s",
        "exp_samples": [{"labels": f"ALERTS{{{text}}}", "value": 1}] if expected else [],
    }


def length_s(case: Case, series: Series) -> int:
    """When its last sample is: `0x3` are four samples, `stale` is one."""
    counts = [sum(int(part.partition("x")[2] or 0) + 1 for part in values.split(" ")) - 1 for values in series.values()]
    return max(counts) * case.step_s


def promtool(directory: Path, tests: list[dict[str, Any]], step_s: int) -> None:
    file = directory / "rules_test.yaml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": f"{step_s}s", "tests": tests}, width=1000)
    )
    ran = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}-{case.labels.get('window', case.true_s)}")
def test_rule(case: Case, tmp_path: Path) -> None:
    rule, step_s = rule_of(case), case.step_s
    fires_s = case.true_s + seconds(rule["for"])
    states = [state(case, case.true_s - step_s, None), state(case, fires_s, "firing")]
    if fires_s > case.true_s:
        states += [state(case, case.true_s, "pending"), state(case, fires_s - step_s, "pending")]
    annotations = {name: said(text, case) for name, text in rule["annotations"].items()}
    alerts = [{"exp_labels": case.labels, "exp_annotations": annotations}]
    tests: list[dict[str, Any]] = [
        {
            "interval": f"{step_s}s",
            "input_series": input_of(case.fires),
            "promql_expr_test": states,
            "alert_rule_test": [{"alertname": case.alert, "eval_time": f"{fires_s}s", "exp_alerts": alerts}],
        }
    ]
    for quiet in case.quiet:
        end_s = length_s(case, quiet)
        fired = alerts_of(case, ',alertstate="firing"')
        assert end_s >= seconds(rule["for"]) + step_s, "it ends before it could fire"
        never = {"expr": f"count_over_time({fired}[{end_s}s])", "eval_time": f"{end_s}s", "exp_samples": []}
        tests.append(
            {"interval": f"{step_s}s", "input_series": input_of(quiet), "promql_expr_test": [never]},
        )
    if case.over is not None:
        end_s = length_s(case, case.over)
        tests.append(
            {
                "interval": f"{step_s}s",
                "input_series": input_of(case.over),
                "promql_expr_test": [state(case, end_s, None)],
            }
        )
    promtool(tmp_path, tests, step_s)


def test_promtool_finds_nothing_to_complain_of() -> None:
    ran = subprocess.run([str(PROMTOOL), "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "SUCCESS" in ran.stdout, ran.stdout + ran.stderr


def test_each_rule_has_a_case_and_what_a_person_needs() -> None:
    covered = {id_of(rule_of(case)) for case in CASES}
    for rule in rules():
        assert id_of(rule) in covered, f"no promtool test of {rule['alert']}"
        assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
        assert rule["labels"].get("severity") in ("page", "ticket") or rule["alert"] == "controller-alarm"
        assert "for" in rule and rule["alert"] == rule["alert"].lower()


def test_rules_name_metrics_that_exist() -> None:
    for rule in rules() + rules("record"):
        assert not metric_names(rule["expr"]) - known_names(), rule
    grants = 'sum by (le) (rate(a_bucket[5m])) / on (x) group_left (y) b:c{d="e f"} unless e offset 5m > 1e3'
    assert metric_names(grants) == {"a_bucket", "b:c", "e"}, "else this finds nothing"


def id_of(rule: dict[str, Any]) -> tuple[str, str]:
    return rule["alert"], str(sorted(rule["labels"].items()))


def test_burn_rates_are_the_detectors() -> None:
    """One objective, the same windows and factors: the two must not contradict each other."""
    [budget] = [rule["expr"] for rule in rules("record") if rule["record"] == "moray:slo_budget:ratio"]
    assert float(budget.removeprefix("vector(").removesuffix(")")) == pytest.approx(1 - Objective().attained)
    hours = {"5m": 300, "30m": 1800, "1h": 3600, "6h": 21600, "3d": 259200}
    found = set()
    for rule in (r for r in rules() if r["alert"].startswith("slo-burn")):
        long, short = re.findall(r"ratio_rate(\w+) >", rule["expr"])
        [factor] = {float(number or 1) for number in re.findall(r"> (?:([\d.]+) \* )?scalar", rule["expr"])}
        found.add((rule["alert"], hours[long], hours[short], factor))
        assert f">= {Objective().requests}" in rule["expr"]
    assert found == {(burn.kind.name, burn.long_s, burn.short_s, burn.rate) for burn in BURNS}
