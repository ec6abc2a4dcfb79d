"""Moray on Kubernetes, beyond what the chart and KubeRay do: nodes that must be left, versions, what goes on."""
