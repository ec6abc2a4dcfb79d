{{/* Names and labels of all objects. */}}

{{- define "moray.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters at most: KubeRay allows a RayService 47, and what is made of it has to stay below 63. */}}
{{- define "moray.fullname" -}}
{{- $name := include "moray.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* metadata of an object. Call with (dict "root" $ "name" … "component" …, optional). */}}
{{- define "moray.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "moray.labels" . | nindent 2 }}
{{- end -}}

{{- define "moray.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "moray.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: moray
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/*
Labels by which pods are selected: of a component, or of all. Neither a version nor app.kubernetes.io/name is among them.
The former would restart pods; the latter is KubeRay's: it selects the head of a RayService by "kuberay", and a head that has
another name has no Service.
*/}}
{{- define "moray.selector" -}}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: moray
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* A NetworkPolicy's selector of all Ray pods, of whichever cluster. */}}
{{- define "moray.raySelector" -}}
matchLabels:
  {{- include "moray.selector" (dict "root" .) | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [head, worker]
{{- end -}}

{{/*
The Service in front of the gateways: KubeRay's, which follows the cluster that serves. For an incremental upgrade KubeRay has a
Service for each cluster, so that there the chart makes one over both, for its own pods.
*/}}
{{- define "moray.gatewayService" -}}
{{- $incremental := eq .Values.ray.upgrade.strategy "NewClusterWithIncrementalUpgrade" -}}
{{- printf "%s-%s" (include "moray.fullname" .) (ternary "clusters" "gateway" $incremental) -}}
{{- end -}}

{{/* "true" where the cluster has policy/v1. `helm template` asks none, and takes it for granted whatever version it is given. */}}
{{- define "moray.policyV1" -}}
{{- if and (.Capabilities.APIVersions.Has "policy/v1") (semverCompare ">=1.21.0-0" .Capabilities.KubeVersion.Version) }}true{{ end -}}
{{- end -}}

{{- define "moray.image" -}}
{{- $facts := include "moray.facts" . | fromJson -}}
{{- $image := .Values.image -}}
{{- $tag := $image.tag -}}
{{- if not (or $tag $image.digest) -}}
{{- $tag = printf "%s-%s" .Chart.AppVersion (ternary "gpu" "cpu" $facts.cuda) -}}
{{- end -}}
{{- $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{/* Of every container: what the Pod Security Standard restricted asks for, and a read-only root. */}}
{{- define "moray.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Of every pod. The user is the image's. A volume of models is not walked through for its group at each start. */}}
{{- define "moray.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
