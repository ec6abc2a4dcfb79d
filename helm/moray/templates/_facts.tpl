{{/*
What follows from the values, as JSON (`include "moray.facts" . | fromJson`): the settings as Moray gets them, the worker groups
with all that they do not say filled in, and how much of the model they hold.
*/}}
{{- define "moray.facts" -}}
{{- $values := .Values -}}
{{- $layout := .Files.Get (printf "profiles/%s.yaml" (default "cpu" $values.profile)) | fromYaml -}}
{{- $given := deepCopy $values.settings -}}
{{- $autoscaling := ne (dig "autoscaling" "max_replicas" nil $given) nil -}}
{{- $incremental := eq $values.ray.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}

{{- /* Worker groups: the group's own word, then ray.worker's. */ -}}
{{- $groups := list -}}
{{- $cuda := false -}}
{{- range default $layout.workerGroups $values.ray.workerGroups -}}
  {{- $group := dict -}}
  {{- range $key, $value := $values.ray.worker }}{{ $_ := set $group $key $value }}{{ end -}}
  {{- range $key, $value := . }}{{ $_ := set $group $key $value }}{{ end -}}
  {{- if gt (int $group.gpus) 0 }}{{ $cuda = true }}{{ end -}}
  {{- $groups = append $groups $group -}}
{{- end -}}

{{- /* What one replica takes. */ -}}
{{- $shards := dig "experts" "expert_parallel" nil $given | default $layout.shards | int -}}
{{- $perShard := ternary (dig "replicas" "gpus_per_shard" nil $given | default 1) 0 $cuda | float64 -}}
{{- $cpus := mulf (dig "replicas" "cpus_per_shard" 1 $given | float64) $shards -}}
{{- $gpus := mulf $perShard $shards -}}
{{- /* Without a profile and with settings or groups of one's own, Moray's default holds. */ -}}
{{- $own := and (not $values.profile) (or $autoscaling (gt (len $values.ray.workerGroups) 0)) -}}
{{- $replicas := dig "replicas" "count" nil $given | default (ternary 1 $layout.replicas $own) | int -}}
{{- $fewest := $replicas -}}
{{- $most := $replicas -}}
{{- if $autoscaling -}}
  {{- $fewest = dig "autoscaling" "min_replicas" 1 $given | int -}}
  {{- $most = $given.autoscaling.max_replicas | int -}}
{{- end -}}

{{- /* Replicas that a pod holds, and all pods of a group. */ -}}
{{- $room := 0 -}}
{{- range $group := $groups -}}
  {{- $unit := ternary $gpus $cpus $cuda | float64 -}}
  {{- $has := ternary $group.gpus $group.cpus $cuda | float64 -}}
  {{- $holds := 0 -}}
  {{- if gt $unit 0.0 }}{{ $holds = floor (divf $has $unit) | int }}{{ end -}}
  {{- $pods := int $group.replicas -}}
  {{- $_ := set $group "pods" $pods -}}
  {{- $_ := set $group "min" $pods -}}
  {{- $_ := set $group "max" $pods -}}
  {{- if or $autoscaling $incremental -}}
    {{- $_ := set $group "max" (ternary $pods (int $group.maxReplicas) (kindIs "invalid" $group.maxReplicas)) -}}
    {{- $_ := set $group "min" (ternary 0 (int $group.minReplicas) (kindIs "invalid" $group.minReplicas)) -}}
    {{- $_ := set $group "pods" (max $group.min (min $pods $group.max)) -}}
  {{- end -}}
  {{- $_ := set $group "holds" $holds -}}
  {{- $room = add $room (mul $holds $group.max) | int -}}
{{- end -}}
{{- /* Pods of a group that certainly serve: those that the fewest replicas need when the other groups are full. */ -}}
{{- range $group := $groups -}}
  {{- $rest := sub $fewest (sub $room (mul $group.holds $group.max)) | int -}}
  {{- $busy := 0 -}}
  {{- if and (gt $rest 0) (gt (int $group.holds) 0) -}}
    {{- $busy = min $group.max (ceil (divf $rest $group.holds) | int) -}}
  {{- end -}}
  {{- $_ := set $group "busy" $busy -}}
{{- end -}}

{{- $holds := 1 -}}
{{- range $groups }}{{ $holds = max $holds .holds }}{{ end -}}
{{- $step := default $holds (int $values.ray.upgrade.groupsPerStep) -}}

{{- /* The settings that the chart fills in. */ -}}
{{- $store := $values.model.store.kind -}}
{{- $version := $values.model.version -}}
{{- if not (or $store $version) }}{{ $version = "v1" }}{{ end -}}
{{- $settings := $given -}}
{{- range $group := list "model" "engine" "experts" "replicas" "gateway" "metrics" "ray" -}}
  {{- $_ := set $settings $group (default dict (get $settings $group)) -}}
{{- end -}}
{{- if $values.profile }}{{ $_ := set $settings.model "profile" $values.profile }}{{ end -}}
{{- if $store -}}
  {{- $_ := set $settings.model "store" "/models/store" -}}
{{- end -}}
{{- if $values.model.name }}{{ $_ := set $settings.model "name" $values.model.name }}{{ end -}}
{{- if $version }}{{ $_ := set $settings.model "version" $version }}{{ end -}}
{{- $_ := set $settings.engine "device" (ternary "cuda" "cpu" $cuda) -}}
{{- $_ := set $settings.experts "expert_parallel" $shards -}}
{{- $_ := set $settings.replicas "count" $replicas -}}
{{- $_ := set $settings.gateway "host" "0.0.0.0" -}}
{{- $_ := set $settings.gateway "port" (int $values.service.port) -}}
{{- if $values.auth.existingSecret -}}
  {{- $_ := set $settings.gateway "keys_file" (printf "/etc/moray-keys/%s" $values.auth.key) -}}
{{- else if $values.auth.allowUnauthenticated -}}
  {{- $_ := set $settings.gateway "allow_unauthenticated" true -}}
{{- end -}}
{{- $_ := set $settings.metrics "port" 8090 -}}
{{- $_ := set $settings.ray "address" "auto" -}}

{{- dict
  "settings" $settings
  "groups" $groups
  "cuda" $cuda
  "shards" $shards
  "gpusOfReplica" $gpus
  "cpusOfReplica" $cpus
  "replicas" $replicas
  "most" $most
  "room" $room
  "gateways" (dig "gateway" "count" 1 $settings | default 1 | int)
  "autoscaling" $autoscaling
  "incremental" $incremental
  "autoscaler" (or $autoscaling $incremental)
  "groupsPerPod" $holds
  "groupsPerStep" $step
  "version" $version
  "metricsPort" 8090
  "haproxy" (dig "gateway" "haproxy" true $settings)
  "requestTimeout" (dig "gateway" "request_timeout_s" 600 $settings | float64 | ceil | int)
  "startTimeout" (dig "replicas" "start_timeout_s" 900 $settings | float64 | ceil | int)
  "replicaDrain" (dig "replicas" "drain_s" 30 $settings | float64 | ceil | int)
  | toJson -}}
{{- end -}}
