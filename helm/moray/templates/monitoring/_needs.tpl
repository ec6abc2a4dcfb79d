{{/* Fails where the cluster does not know a kind. Call with (list $ "group/version/Kind" "the value that asks for it"). */}}
{{- define "moray.monitoring.needs" -}}
{{- $root := index . 0 -}}
{{- $kind := index . 1 -}}
{{- if not ($root.Capabilities.APIVersions.Has $kind) -}}
{{- fail (printf "\n\nmonitoring.%s.enabled is true, but this cluster does not know %s: install the Prometheus operator with its CRDs first, or set it to false. (`helm template` asks no cluster: give it --api-versions %s.)\n" (index . 2) $kind $kind) -}}
{{- end -}}
{{- end -}}
