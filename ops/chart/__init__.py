"""What of the chart helm/moray is made by a program: schema, reference page, copies of rules and dashboards."""
