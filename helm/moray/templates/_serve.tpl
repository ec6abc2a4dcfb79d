{{/*
serveConfigV2. model.version is in no argument of the application but in the Gateway's user_config alone: a change of it is an update in
place that restarts nothing, and starts a rollout (ops/rollout/wanted.py). A new Ray cluster reads it from the ConfigMap.
*/}}
{{- define "moray.serveConfig" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
{{- $arguments := deepCopy $facts.settings -}}
{{- $_ := set $arguments "model" (omit $arguments.model "version") -}}
{{- $application := dict
  "name" "moray"
  "route_prefix" "/"
  "import_path" "cluster.app:build"
  "external_scaler_enabled" (not $facts.autoscaling)
  "args" $arguments -}}
{{- $gateway := dict "name" "Gateway" "max_replicas_per_node" 4 -}}
{{- with $facts.version -}}
  {{- $wish := dict "version" . -}}
  {{- with $.Values.rollout }}{{ $_ := set $wish "rollout" . }}{{ end -}}
  {{- $_ := set $gateway "user_config" $wish -}}
{{- end -}}
{{- $_ := set $application "deployments" (list $gateway) -}}
{{- dict
  "proxy_location" "EveryNode"
  "http_options" (dict "host" "0.0.0.0" "port" (int .Values.service.port) "request_timeout_s" $facts.requestTimeout)
  "logging_config" (dict "log_level" (dig "log" "level" "INFO" $facts.settings) "enable_access_log" false)
  "applications" (list $application)
  | toYaml -}}
{{- end -}}
