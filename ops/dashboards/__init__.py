"""Grafana dashboards as code: `python -m ops.dashboards` writes generated/*.json; a test compares them."""
