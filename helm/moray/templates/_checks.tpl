{{/* Refuses values that contradict each other, all of them in one message. */}}
{{- define "moray.check" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
{{- $values := .Values -}}
{{- $ray := $values.ray -}}
{{- $store := $values.model.store -}}
{{- $wrong := list -}}

{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" (include "moray.fullname" .)) -}}
  {{- $wrong = append $wrong (printf "the name %q cannot be a RayService's, which begins with a letter and has lower-case letters, digits and '-' only: set fullnameOverride, or call the release otherwise" (include "moray.fullname" .)) -}}
{{- end -}}

{{- /* The image. */ -}}
{{- if not $values.image.repository -}}
  {{- $wrong = append $wrong "image.repository is empty: name the registry and the image that you have built of images/" -}}
{{- end -}}
{{- if eq $values.image.tag "latest" -}}
  {{- $wrong = append $wrong "image.tag is latest, which is another image tomorrow, so that pods of one cluster could differ: name a version, or image.digest" -}}
{{- end -}}

{{- /* Keys. */ -}}
{{- if and $values.auth.existingSecret $values.auth.allowUnauthenticated -}}
  {{- $wrong = append $wrong "auth.existingSecret and auth.allowUnauthenticated are both set: choose one" -}}
{{- else if not (or $values.auth.existingSecret $values.auth.allowUnauthenticated) -}}
  {{- $wrong = append $wrong "nobody may use the API: set auth.existingSecret (`moray key new --tenant NAME --file keys.yaml`, then `kubectl create secret generic moray-keys --from-file=keys.yaml`), or auth.allowUnauthenticated=true if whoever reaches it may use it" -}}
{{- end -}}

{{- /* The model. */ -}}
{{- if and $values.profile (not $store.kind) -}}
  {{- $wrong = append $wrong (printf "profile is %s, but there is no store with its model: set model.store.kind to persistentVolumeClaim, hostPath or objectStorage, and what that kind needs" $values.profile) -}}
{{- end -}}
{{- if and $values.profile (not $facts.cuda) -}}
  {{- $wrong = append $wrong (printf "profile is %s, which is for GPUs, but ray.workerGroups have none: give them gpus, or leave the profile out" $values.profile) -}}
{{- end -}}
{{- if $store.kind -}}
  {{- if not $values.model.name }}{{ $wrong = append $wrong "model.store.kind is set, but not the model's name in the API: set model.name" }}{{ end -}}
  {{- if not $values.model.version }}{{ $wrong = append $wrong "model.store.kind is set, but not which version is served: set model.version; `moray model list --store DIR` shows them" }}{{ end -}}
{{- end -}}
{{- if and (eq $store.kind "persistentVolumeClaim") (not $store.persistentVolumeClaim.claimName) -}}
  {{- $wrong = append $wrong "model.store.kind is persistentVolumeClaim: set model.store.persistentVolumeClaim.claimName to an existing claim" -}}
{{- end -}}
{{- if and (eq $store.kind "hostPath") (not (hasPrefix "/" $store.hostPath.path)) -}}
  {{- $wrong = append $wrong "model.store.kind is hostPath: set model.store.hostPath.path to the store's absolute path on every node" -}}
{{- end -}}
{{- if eq $store.kind "objectStorage" -}}
  {{- $object := $store.objectStorage -}}
  {{- if not (and $object.image $object.command) }}{{ $wrong = append $wrong "model.store.kind is objectStorage: set model.store.objectStorage.image and model.store.objectStorage.command, which copies the version $VERSION into $TARGET" }}{{ end -}}
  {{- if or (hasSuffix ":latest" $object.image) (and $object.image (not (regexMatch "(:[^/]+|@sha256:[0-9a-f]{64})$" $object.image))) }}{{ $wrong = append $wrong (printf "model.store.objectStorage.image is %s: name it by a tag other than latest, or by digest" $object.image) }}{{ end -}}
  {{- if and $values.model.version (not (has $values.model.version $object.versions)) }}{{ $wrong = append $wrong (printf "model.version is %s, but model.store.objectStorage.versions, which pods copy, are [%s]: add it there, and roll it out once the pods have it" $values.model.version (join ", " $object.versions)) }}{{ end -}}
{{- end -}}

{{- /* Settings that other values decide. */ -}}
{{- $decided := dict
  "model.profile" "profile" "model.path" "model.store (`moray model add` makes a version of a checkpoint)" "model.store" "model.store"
  "model.version" "model.version" "model.name" "model.name" "engine.device" "the worker groups' gpus"
  "gateway.host" "the chart" "gateway.port" "service.port" "gateway.keys_file" "auth.existingSecret"
  "gateway.allow_unauthenticated" "auth.allowUnauthenticated" "metrics.port" "the chart" "ray.address" "the chart"
  "ray.num_cpus" "ray.worker.cpus" "ray.dashboard" "the chart" "ray.dashboard_port" "the chart" -}}
{{- range $key := keys $decided | sortAlpha -}}
  {{- $path := splitList "." $key -}}
  {{- if hasKey (default dict (get $values.settings (first $path))) (last $path) -}}
    {{- $wrong = append $wrong (printf "settings.%s is decided by %s: leave it out of settings" $key (get $decided $key)) -}}
  {{- end -}}
{{- end -}}

{{- /* Worker groups hold whole expert groups, and enough of them. */ -}}
{{- $names := list -}}
{{- range $facts.groups -}}
  {{- if has .name $names }}{{ $wrong = append $wrong (printf "two worker groups are called %s" .name) }}{{ end -}}
  {{- $names = append $names .name -}}
  {{- if and $facts.cuda (eq (int .gpus) 0) -}}
    {{- $wrong = append $wrong (printf "worker group %s has no GPUs, others have: replicas need them" .name) -}}
  {{- else if eq (int .holds) 0 -}}
    {{- if $facts.cuda -}}
      {{- $wrong = append $wrong (printf "a pod of worker group %s has %v GPUs, fewer than one expert group needs: experts.expert_parallel %v x replicas.gpus_per_shard are %v, and a group never leaves its pod" .name .gpus $facts.shards $facts.gpusOfReplica) -}}
    {{- else -}}
      {{- $wrong = append $wrong (printf "a pod of worker group %s has %v CPUs, fewer than one expert group needs: experts.expert_parallel %v x replicas.cpus_per_shard are %v, and a group never leaves its pod" .name .cpus $facts.shards $facts.cpusOfReplica) -}}
    {{- end -}}
  {{- else if and $facts.cuda (gt (subf .gpus (mulf .holds $facts.gpusOfReplica)) 0.0) -}}
    {{- $wrong = append $wrong (printf "a pod of worker group %s has %v GPUs, which is no multiple of an expert group's %v (experts.expert_parallel x replicas.gpus_per_shard): %v of them would idle" .name .gpus $facts.gpusOfReplica (subf .gpus (mulf .holds $facts.gpusOfReplica))) -}}
  {{- end -}}
  {{- if lt (float64 .cpus) (mulf .holds $facts.cpusOfReplica) -}}
    {{- $wrong = append $wrong (printf "a pod of worker group %s has %v CPUs, but its %v replicas reserve %v (experts.expert_parallel x replicas.cpus_per_shard each)" .name .cpus .holds (mulf .holds $facts.cpusOfReplica)) -}}
  {{- end -}}
  {{- if gt (int .min) (int .max) -}}
    {{- $wrong = append $wrong (printf "worker group %s has minReplicas %v above maxReplicas %v" .name .min .max) -}}
  {{- end -}}
{{- end -}}
{{- if lt (int $facts.room) (int $facts.most) -}}
  {{- $wrong = append $wrong (printf "%s is %v, but the worker groups hold %v: raise their %s, or lower it" (ternary "settings.autoscaling.max_replicas" "settings.replicas.count" $facts.autoscaling) $facts.most $facts.room (ternary "maxReplicas" "replicas" $facts.autoscaler)) -}}
{{- end -}}
{{- if gt (int $facts.replicas) (int $facts.most) -}}
  {{- $wrong = append $wrong (printf "settings.replicas.count, with which the cluster starts, is %v, but settings.autoscaling.max_replicas is %v: lower the one or raise the other" $facts.replicas $facts.most) -}}
{{- end -}}
{{- $strategy := default (dig "rollout" "strategy" "auto" $values.settings) (get $values.rollout "strategy") -}}
{{- $surge := default (dig "rollout" "surge" 1 $values.settings) (get $values.rollout "surge") | int -}}
{{- if and (eq $strategy "surge") (lt (int $facts.room) (add $facts.most $surge | int)) (ge (int $facts.room) (int $facts.most)) -}}
  {{- $wrong = append $wrong (printf "rollouts are to surge, which takes room for %v replicas more than %v, but the worker groups hold %v: raise their %s, or roll in place" $surge $facts.most $facts.room (ternary "maxReplicas" "replicas" $facts.autoscaler)) -}}
{{- end -}}
{{- $pods := 0 -}}
{{- range $facts.groups }}{{ $pods = add $pods .max | int }}{{ end -}}
{{- if gt (int $facts.gateways) (mul 4 $pods | int) -}}
  {{- $wrong = append $wrong (printf "settings.gateway.count is %v, but a worker pod holds 4 gateways at most, and there are %v: lower it, or raise the worker groups' replicas" $facts.gateways $pods) -}}
{{- end -}}
{{- $cpus := 0.0 -}}
{{- range $facts.groups }}{{ $cpus = addf $cpus (mulf (floor .cpus) .max) }}{{ end -}}
{{- if lt $cpus (addf (mulf $facts.most $facts.cpusOfReplica) $facts.gateways) -}}
  {{- $wrong = append $wrong (printf "all worker pods have %v CPUs, but %v replicas reserve %v and %v gateways one each: raise ray.worker.cpus or the worker groups' cpus" $cpus $facts.most (mulf $facts.most $facts.cpusOfReplica) $facts.gateways) -}}
{{- end -}}

{{- /* Redis. */ -}}
{{- if and $ray.redis.enabled (not $ray.redis.address) -}}
  {{- $wrong = append $wrong "ray.redis.enabled is true, but ray.redis.address is empty: the chart brings no Redis; name yours as host:port" -}}
{{- else if and $ray.redis.address (not $ray.redis.enabled) -}}
  {{- $wrong = append $wrong "ray.redis.address is set, but ray.redis.enabled is not" -}}
{{- else if and $ray.redis.enabled (not (regexMatch "^(rediss?://)?[A-Za-z0-9.-]+:[0-9]+$" $ray.redis.address)) -}}
  {{- $wrong = append $wrong (printf "ray.redis.address is %s: write host:port, redis://host:port or rediss://host:port" $ray.redis.address) -}}
{{- end -}}
{{- if and $ray.auth.existingSecret (not $ray.auth.enabled) -}}
  {{- $wrong = append $wrong "ray.auth.existingSecret is set, but ray.auth.enabled is not" -}}
{{- end -}}

{{- /* Ways in, and upgrades. */ -}}
{{- if $facts.incremental -}}
  {{- if not $values.gatewayApi.className }}{{ $wrong = append $wrong "ray.upgrade.strategy is NewClusterWithIncrementalUpgrade, which moves the traffic by the Gateway API: set gatewayApi.className to a GatewayClass of the cluster" }}{{ end -}}
  {{- if or $values.ingress.enabled $values.gatewayApi.enabled }}{{ $wrong = append $wrong (printf "ray.upgrade.strategy is NewClusterWithIncrementalUpgrade, for which KubeRay makes the Gateway %s-gateway and its HTTPRoute: what else leads in would pass them by; set ingress.enabled and gatewayApi.enabled to false" (include "moray.fullname" .)) }}{{ end -}}
  {{- if mod (int $facts.groupsPerStep) (int $facts.groupsPerPod) }}{{ $wrong = append $wrong (printf "ray.upgrade.groupsPerStep is %v, but a pod holds %v expert groups: write a multiple of that" $facts.groupsPerStep $facts.groupsPerPod) }}{{ end -}}
{{- else if $ray.upgrade.groupsPerStep -}}
  {{- $wrong = append $wrong (printf "ray.upgrade.groupsPerStep is set, but ray.upgrade.strategy is %s: only NewClusterWithIncrementalUpgrade goes in steps" $ray.upgrade.strategy) -}}
{{- end -}}
{{- if and $values.gatewayApi.enabled (not $values.gatewayApi.parentRefs) -}}
  {{- $wrong = append $wrong "gatewayApi.enabled is true, but gatewayApi.parentRefs names no Gateway" -}}
{{- end -}}
{{- if and (ne $values.service.type "LoadBalancer") (or $values.service.loadBalancerClass $values.service.loadBalancerSourceRanges) -}}
  {{- $wrong = append $wrong (printf "service.loadBalancerClass and service.loadBalancerSourceRanges are for service.type LoadBalancer, not %s" $values.service.type) -}}
{{- end -}}
{{- $port := int $values.service.port -}}
{{- if or (and (ge $port 10001) (le $port 19999)) (and (ge $port 30000) (le $port 31000)) (has $port (list 6379 8080 8090 8091 8092 8093 8265 8404 8500 9101 9500 44217 44227 52365)) -}}
  {{- $wrong = append $wrong (printf "service.port is %v, which Ray, HAProxy or metrics may use in the pods: choose another, such as 8000" $port) -}}
{{- end -}}

{{- /* Drain. */ -}}
{{- if lt (int $values.drain.seconds) (add $facts.replicaDrain 15 | int) -}}
  {{- $wrong = append $wrong (printf "drain.seconds is %v, less than a replica has to stop: settings.replicas.drain_s %v and 15 for its engine" $values.drain.seconds $facts.replicaDrain) -}}
{{- end -}}

{{- /* Files that are written. */ -}}
{{- range $key := list "alarms.state_path" "alarms.record_path" "rollout.audit_path" -}}
  {{- $path := splitList "." $key -}}
  {{- with get (default dict (get $values.settings (first $path))) (last $path) -}}
    {{- if not $values.state.existingClaim -}}
      {{- $wrong = append $wrong (printf "settings.%s is set, but pods have no place that outlives them: set state.existingClaim to a claim that all nodes can write" $key) -}}
    {{- else if not (hasPrefix "/var/lib/moray/" .) -}}
      {{- $wrong = append $wrong (printf "settings.%s is %s, but pods can write below /var/lib/moray only" $key .) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with $values.compileCache -}}
  {{- if and .existingClaim .hostPath -}}
    {{- $wrong = append $wrong "compileCache.existingClaim and compileCache.hostPath are both set: choose one" -}}
  {{- end -}}
  {{- if and .hostPath (not (hasPrefix "/" .hostPath)) -}}
    {{- $wrong = append $wrong (printf "compileCache.hostPath is %s: set it to the folder's absolute path on every node" .hostPath) -}}
  {{- end -}}
{{- end -}}
{{- if and $values.nodeWatcher.enabled $values.auth.existingSecret (not $values.nodeWatcher.existingSecret) -}}
  {{- $wrong = append $wrong "auth.existingSecret is set, so that the node watcher needs an API key too: set nodeWatcher.existingSecret to a Secret with one of a tenant that settings.gateway.operators names, or nodeWatcher.enabled to false" -}}
{{- end -}}

{{- if $wrong -}}
  {{- fail (printf "\n\nThese values cannot be had together:\n  - %s\n" (join "\n  - " $wrong)) -}}
{{- end -}}
{{- end -}}
