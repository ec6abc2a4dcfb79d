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
{{- /* On a node that is drained, Serve waits for another gateway before it stops this one, as long as this one's streams have time. */ -}}
{{- $streams := max $facts.replicaDrain (sub .Values.drain.seconds 45) -}}
{{- $gateway := dict "name" "Gateway" "max_replicas_per_node" 4 "graceful_shutdown_timeout_s" $streams -}}
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

{{/*
The share by which an incremental upgrade goes on, of replicas and of traffic, in per cent: the smallest, from that of groupsPerStep on,
of which each multiple is whole steps. Serve rounds a share of the replicas to the nearest number, a half up.
*/}}
{{- define "moray.stepPercent" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
{{- $replicas := max 1 $facts.replicas | int -}}
{{- $step := int $facts.groupsPerStep -}}
{{- $found := 100 -}}
{{- range $percent := untilStep (max 1 (div (mul 100 $step) $replicas) | int) 100 1 -}}
  {{- $whole := lt $percent $found -}}
  {{- range $share := untilStep $percent 100 $percent -}}
    {{- $moved := div (add (mul $replicas $share) 50) 100 -}}
    {{- if or (eq $moved 0) (ne (mod $moved $step) 0) }}{{ $whole = false }}{{ end -}}
  {{- end -}}
  {{- if $whole }}{{ $found = $percent }}{{ end -}}
{{- end -}}
{{- $found -}}
{{- end -}}
