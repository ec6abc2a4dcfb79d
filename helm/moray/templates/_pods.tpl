{{/* What the pods of head and workers have in common. */}}

{{/*
Environment of Ray's processes. Serve reads its own when it is imported, so it has to be the pods'. HAProxy's files lie in /tmp,
its ports are Serve's defaults: a pod has nobody to share them with.
*/}}
{{- define "moray.rayEnvironment" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
- name: MORAY_CONFIG
  value: /etc/moray/moray.yaml
- name: HOME
  value: /home/moray
- name: USER # Python asks for a name, which the uid may not have
  value: moray
- name: XDG_CACHE_HOME
  value: /home/moray/.cache
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: RAY_worker_niceness # Ray's 15 yields to whatever else runs: right for batch jobs, wrong for serving
  value: "0"
- name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO # a gateway has no GPU of its own, but vLLM has to see what kind they are
  value: "0"
- name: RAY_SERVE_THROUGHPUT_OPTIMIZED
  value: "1"
- name: RAY_SERVE_CONTROL_LOOP_INTERVAL_S # Ray's 0.1 takes 4% of a core for nothing
  value: "0.3"
- name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S
  value: "30"
{{- if $facts.haproxy }}
- name: RAY_SERVE_ENABLE_HA_PROXY
  value: "1"
- name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S # a config change starts a new HAProxy; the old one outlives the longest stream
  value: {{ add $facts.requestTimeout 60 | quote }}
- name: RAY_SERVE_HAPROXY_NBTHREAD
  value: "4"
{{- end }}
{{- end -}}

{{/* Volumes that every Ray pod has. Call with (dict "root" $ "shm" … "tmp" …). KubeRay knows shared-mem and ray-logs by name. */}}
{{- define "moray.rayVolumes" -}}
{{- $values := .root.Values -}}
{{- $store := $values.model.store -}}
- name: shared-mem
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shm }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmp }}
- name: ray-logs
  emptyDir:
    sizeLimit: {{ .tmp }}
- name: home
  emptyDir:
    sizeLimit: {{ .tmp }}
- name: settings
  configMap:
    name: {{ include "moray.fullname" .root }}-settings
{{- with $values.auth.existingSecret }}
- name: keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: {{ $values.auth.key }}
        path: {{ $values.auth.key }}
{{- end }}
{{- if eq $store.kind "persistentVolumeClaim" }}
- name: store
  persistentVolumeClaim:
    claimName: {{ $store.persistentVolumeClaim.claimName | quote }}
    readOnly: true
{{- else if eq $store.kind "hostPath" }}
- name: store
  hostPath:
    path: {{ $store.hostPath.path }}
    type: Directory
{{- else if eq $store.kind "objectStorage" }}
- name: store
  emptyDir:
    sizeLimit: {{ $store.objectStorage.size }}
{{- end }}
{{- with $values.state.existingClaim }}
- name: state
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- end -}}

{{- define "moray.rayMounts" -}}
- name: shared-mem
  mountPath: /dev/shm
- name: tmp
  mountPath: /tmp
- name: ray-logs
  mountPath: /tmp/ray
- name: home
  mountPath: /home/moray
- name: settings
  mountPath: /etc/moray
  readOnly: true
{{- if .Values.auth.existingSecret }}
- name: keys
  mountPath: /etc/moray-keys
  readOnly: true
{{- end }}
{{- if .Values.model.store.kind }}
{{ include "moray.storeMount" . }}
  readOnly: true
{{- end }}
{{- if .Values.state.existingClaim }}
- name: state
  mountPath: /var/lib/moray
{{- end }}
{{- end -}}

{{- define "moray.storeMount" -}}
- name: store
  mountPath: /models/store
  {{- if eq .Values.model.store.kind "persistentVolumeClaim" }}
  {{- with .Values.model.store.persistentVolumeClaim.subPath }}
  subPath: {{ . | quote }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/*
Ray's own health: its raylet and, on the head, its control plane. Loading a model keeps disk and CPUs busy, so that Ray may be slow
to start and to answer: as long as a replica may take to load.
*/}}
{{- define "moray.rayProbes" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
startupProbe:
  httpGet:
    path: /api/healthz
    port: 52365
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: {{ max 12 (ceil (divf $facts.startTimeout 10)) | int }}
livenessProbe:
  httpGet:
    path: /api/healthz
    port: 52365
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 12
{{- end -}}

{{/*
Before a pod's processes are told to end. Its endpoint is gone by then, for the load balancer. A worker tells Ray, whose Serve moves
its replicas and sends its gateways nothing new; what is open may end. Counted are connections to the named ports: of clients to
HAProxy, and of other nodes' HAProxies to the gateways here. Call with (dict "root" $ "ports" "LOW-HIGH …" "drain" BOOL).
*/}}
{{- define "moray.preStop" -}}
{{- $seconds := int .root.Values.drain.seconds -}}
until=$((SECONDS + {{ $seconds }}))
{{- if .drain }}
timeout 30 ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is stopped' \
  --deadline-remaining-seconds {{ $seconds }} || echo 'Ray was not told that this node ends' >&2
{{- end }}
open() {
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | while read -r _ here _ state _; do
    [ "$state" = 01 ] || continue
    port=$((16#${here##*:}))
    for range in {{ .ports }}; do
      [ "$port" -ge "${range%-*}" ] && [ "$port" -le "${range#*-}" ] && echo "$port"
    done
  done
}
sleep {{ min 10 $seconds }} # until load balancers have heard that the endpoint is gone
while [ "$SECONDS" -lt "$until" ] && [ -n "$(open)" ]; do sleep 1; done
exit 0
{{- end -}}

{{/* preStop, what a replica takes to stop, and some time for Ray. */}}
{{- define "moray.gracePeriod" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
{{- add .Values.drain.seconds $facts.replicaDrain 15 30 -}}
{{- end -}}
