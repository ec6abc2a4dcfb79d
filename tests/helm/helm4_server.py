"""Helm 4 in a process of its own: a line of JSON in, a line of JSON out. Go's threads have no business in pytest's process.

In: {"chart": path, "values": {…}, "options": {"name", "namespace", "kube_version", "api_versions"}} or, with "lint": true,
{"chart", "values", "kube_version"}. Out: {"files": {template: text}}, {"lint": {…}} or {"refused": why}.
"""

import json
import sys

import helm_python
from helm_python import _native


def answer(asked):
    if asked.get("lint"):
        version = asked["kube_version"]
        return {"lint": helm_python.chart.lint(asked["chart"], asked["values"], strict=True, kube_version=version)}
    with helm_python.Chart.load(asked["chart"]) as chart:
        # What `Chart.render` does, and two options more that the library takes: unknown ones it refuses.
        options, values = json.dumps(asked["options"]), json.dumps(asked["values"])
        return {"files": json.loads(_native.call_string("helm_render", chart._raw(), values, options))}


for line in sys.stdin:
    try:
        told = answer(json.loads(line))
    except helm_python.HelmError as error:
        told = {"refused": str(error)}
    print(json.dumps(told), flush=True)
