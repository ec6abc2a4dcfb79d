{{/* Init containers and a side container that bring a store's versions to a pod, and verify them. */}}

{{/* The versions that are to be there, one a line: of the ConfigMap, so that pods live through a change. */}}
{{- define "moray.versions" -}}
{{- if eq .Values.model.store.kind "objectStorage" -}}
{{- join "\n" .Values.model.store.objectStorage.versions -}}
{{- else if .Values.model.store.kind -}}
{{- .Values.model.version -}}
{{- end -}}
{{- end -}}

{{/* A copy gets its name when it is whole: moray.json makes a directory a version. A half one begins with a dot. */}}
{{- define "moray.copyVersions" -}}
copy_versions() {
  failed=0
  for VERSION in $(cat /etc/moray/versions); do
    [ -e "/models/store/$VERSION/moray.json" ] && continue
    echo "copying version $VERSION"
    TARGET=/models/store/.part
    export VERSION TARGET
    rm -rf "$TARGET" "/models/store/$VERSION" && mkdir "$TARGET" || return 1
    sh -ec "$COPY" || { echo "version $VERSION was not copied" >&2; failed=1; continue; }
    [ -e "$TARGET/moray.json" ] || { echo "what was copied for version $VERSION has no moray.json: it is no version" >&2; failed=1; continue; }
    mv "$TARGET" "/models/store/$VERSION" || return 1
    echo "version $VERSION is there"
  done
  return $failed
}
{{- end -}}

{{/* Call with (dict "root" $ "name" … "script" …). */}}
{{- define "moray.copier" -}}
{{- $object := .root.Values.model.store.objectStorage -}}
- name: {{ .name }}
  image: {{ $object.image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [/bin/sh, -uc]
  args:
    - |
      {{- include "moray.copyVersions" .root | nindent 6 }}
      {{- .script | nindent 6 }}
  env:
    - name: COPY
      value: {{ $object.command | quote }}
    - name: HOME
      value: /home/moray
    {{- with $object.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $object.existingSecret }}
  envFrom:
    - secretRef:
        name: {{ . }}
  {{- end }}
  securityContext:
    {{- include "moray.containerSecurity" .root | nindent 4 }}
  resources:
    requests:
      cpu: "1"
      memory: {{ $object.memory }}
    limits:
      cpu: "1"
      memory: {{ $object.memory }}
  volumeMounts:
    - name: store
      mountPath: /models/store
    - name: settings
      mountPath: /etc/moray
      readOnly: true
    - name: tmp
      mountPath: /tmp
    - name: home
      mountPath: /home/moray
{{- end -}}

{{- define "moray.modelInitContainers" -}}
{{- $store := .Values.model.store -}}
{{- if eq $store.kind "objectStorage" }}
{{ include "moray.copier" (dict "root" . "name" "copy-versions" "script" "copy_versions || ls /models/store/*/moray.json >/dev/null # pods that serve another version are to start all the same") }}
{{- end }}
{{- if and $store.kind $store.verify }}
- name: verify-versions
  image: {{ include "moray.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/bash, -euc]
  args:
    - |
      for version in $(cat /etc/moray/versions); do
        if [ -e "/models/store/$version/moray.json" ]; then
          moray model verify "$version" --store /models/store
        else # nothing can be loaded of it; pods that serve another version are to start all the same
          echo "the store has no version $version" >&2
        fi
      done
  env:
    - name: HOME
      value: /home/moray
  securityContext:
    {{- include "moray.containerSecurity" . | nindent 4 }}
  resources:
    requests:
      cpu: "1"
      memory: 1Gi
    limits:
      cpu: "1"
      memory: 1Gi
  volumeMounts:
    {{- include "moray.storeMount" . | nindent 4 }}
      readOnly: true
    - name: settings
      mountPath: /etc/moray
      readOnly: true
    - name: tmp
      mountPath: /tmp
    - name: home
      mountPath: /home/moray
{{- end }}
{{- end -}}

{{/* Copies what is added to the list while the pod runs. */}}
{{- define "moray.modelContainers" -}}
{{- if eq .Values.model.store.kind "objectStorage" }}
{{ include "moray.copier" (dict "root" . "name" "copy-new-versions" "script" "trap 'exit 0' TERM\nwhile :; do\n  copy_versions || echo 'trying again' >&2\n  sleep 15 & wait $!\ndone") }}
{{- end }}
{{- end -}}
