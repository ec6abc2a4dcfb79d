"""Helm 4 in a process of its own, for Go's threads have no business in pytest's: a line of JSON in, one out.

In: {"chart": path, "values": {…}, "options": {"name", "namespace", "kube_version", "api_versions"}} or, with
"lint": true, {"chart", "values", "kube_version"}. Out: {"files": {template: text}}, {"lint": {…}} or {"refused": why}.
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
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
