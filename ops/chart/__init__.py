"""What of the chart helm/moray is made by a program: its schema, its reference page, its copies of rules and dashboards."""
