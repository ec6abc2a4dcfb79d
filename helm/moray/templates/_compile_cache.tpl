{{/*
What worker pods keep of compiled code beyond their own end; nothing without compileCache. The head compiles nothing, and its node
may have no such folder. Paths are the same in all pods: Triton's files hold those of others.
*/}}

{{/* "true" where there is one. */}}
{{- define "moray.compileCache" -}}
{{- if or .Values.compileCache.existingClaim .Values.compileCache.hostPath }}true{{ end -}}
{{- end -}}

{{/*
Python's bytecode is not among them (XDG_CACHE_HOME): the image has it, and by a source's time and size, which is all that Python
looks at, two images may not be told apart.
*/}}
{{- define "moray.compileCacheEnvironment" -}}
{{- if include "moray.compileCache" . }}
- name: VLLM_CACHE_ROOT # vLLM's own graphs with torch's code for them, and its measurements of a GPU's memory
  value: /var/cache/moray/vllm
- name: TRITON_CACHE_DIR
  value: /var/cache/moray/triton
- name: TORCHINDUCTOR_CACHE_DIR # of what vLLM has torch compile outside its graphs
  value: /var/cache/moray/inductor
{{- end }}
{{- end -}}

{{- define "moray.compileCacheMount" -}}
{{- if include "moray.compileCache" . }}
- name: compile-cache
  mountPath: /var/cache/moray
{{- end }}
{{- end -}}

{{/* A folder that is not there is the operator's to make: kubelet would give it to root. */}}
{{- define "moray.compileCacheVolume" -}}
{{- if include "moray.compileCache" . }}
- name: compile-cache
  {{- with .Values.compileCache.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ . | quote }}
  {{- end }}
  {{- with .Values.compileCache.hostPath }}
  hostPath:
    path: {{ . | quote }}
    type: Directory
  {{- end }}
{{- end }}
{{- end -}}

{{/* A group does not make a node's folder writable (fsGroup): said before a replica fails for it in the midst of its start. */}}
{{- define "moray.compileCacheInitContainer" -}}
{{- if include "moray.compileCache" . }}
- name: check-compile-cache
  image: {{ include "moray.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/bash, -euc]
  args:
    - |
      if ! probe=$(mktemp -p /var/cache/moray); then
        echo "compileCache: user $(id -u) cannot write $CACHE; let it: $REMEDY" >&2
        exit 1
      fi
      rm "$probe"
  env:
    {{- if .Values.compileCache.hostPath }}
    - name: CACHE
      value: {{ printf "the folder %s of this node" .Values.compileCache.hostPath | quote }}
    - name: REMEDY
      value: {{ printf "chown 10001:10001 %s && chmod 0700 %s" .Values.compileCache.hostPath .Values.compileCache.hostPath | quote }}
    {{- else }}
    - name: CACHE
      value: {{ printf "the claim %s" .Values.compileCache.existingClaim | quote }}
    - name: REMEDY
      value: its volume has to be writable for group 10001 (fsGroup), or its root owned by 10001
    {{- end }}
  securityContext:
    {{- include "moray.containerSecurity" . | nindent 4 }}
  resources:
    requests:
      cpu: 100m
      memory: 64Mi
    limits:
      cpu: 100m
      memory: 64Mi
  volumeMounts:
    {{- include "moray.compileCacheMount" . | trim | nindent 4 }}
    - name: tmp
      mountPath: /tmp
{{- end }}
{{- end -}}
