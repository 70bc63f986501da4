{{- define "godwit.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "godwit.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "godwit.labels" -}}
{{ include "godwit.selector" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "godwit.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "godwit.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- /* godwit.yaml: the values' config, with what the chart decides on top. */ -}}
{{- define "godwit.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- $admin := dict "listen" (printf "127.0.0.1:%v" .Values.admin.port) -}}
{{- if .Values.admin.tls.secret -}}
{{- $tls := dict "cert" "/etc/godwit/tls/tls.crt" "key" "/etc/godwit/tls/tls.key" -}}
{{- if .Values.admin.tls.clientCa }}{{ $_ := set $tls "client_ca" "/etc/godwit/tls/ca.crt" }}{{ end -}}
{{- $service := include "godwit.name" . -}}
{{- $own := list -}}
{{- range list $service (printf "%s-headless" $service) -}}
{{- $own = concat $own (list . (printf "%s.%s" . $.Release.Namespace) (printf "%s.%s.svc" . $.Release.Namespace)) -}}
{{- end -}}
{{- $hosts := concat $own (dig "node" "admin" "hosts" list $config) | uniq -}}
{{- $admin = dict "listen" (printf "0.0.0.0:%v" .Values.admin.port) "access" "required" "tls" $tls "hosts" $hosts -}}
{{- end -}}
{{- $chart := dict "node" (dict "state" "/var/lib/godwit" "admin" $admin) -}}
{{- mergeOverwrite $config $chart | toYaml -}}
{{- end }}

{{- define "godwit.volumeMounts" -}}
- { name: config, mountPath: /etc/godwit/godwit.yaml, subPath: godwit.yaml, readOnly: true }
{{- range $name, $_ := .Values.policies }}
- { name: config, mountPath: /etc/godwit/policies/{{ $name }}.yaml, subPath: policy-{{ $name }}.yaml, readOnly: true }
{{- end }}
- { name: state, mountPath: /var/lib/godwit }
- { name: tmp, mountPath: /tmp }
{{- if .Values.admin.tls.secret }}
- { name: tls, mountPath: /etc/godwit/tls, readOnly: true }
{{- end }}
{{- range $i, $one := .Values.secrets }}
- { name: secret-{{ $i }}, mountPath: {{ $one.path | quote }}, readOnly: true }
{{- end }}
{{- end }}

{{- /* What the ConfigMap has, and the one that is checked before an upgrade. */ -}}
{{- define "godwit.files" -}}
godwit.yaml: |
  {{- include "godwit.config" . | nindent 2 }}
{{- range $name, $policy := .Values.policies }}
policy-{{ $name }}.yaml: |
  {{- toYaml $policy | nindent 2 }}
{{- end }}
{{- end }}

{{- /* The container that checks the configuration; what it anchors, the node's own container has too. */ -}}
{{- define "godwit.check" -}}
name: check
image: &image {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [check, /etc/godwit/godwit.yaml]
securityContext: &locked
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- with .Values.env }}
env: &env
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts: &mounts
  {{- include "godwit.volumeMounts" . | nindent 2 }}
{{- end }}

{{- /* Volumes but for the state. */ -}}
{{- define "godwit.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.admin.tls.secret }}
- name: tls
  secret: { secretName: {{ .Values.admin.tls.secret }}, defaultMode: 0440 }
{{- end }}
{{- range $i, $one := .Values.secrets }}
- name: secret-{{ $i }}
  secret: { secretName: {{ $one.secret }}, defaultMode: 0440 }
{{- end }}
{{- end }}

{{- /* Who a pod is, where it may run and who pulls its image. */ -}}
{{- define "godwit.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Refuses an upgrade that would have two nodes lead: one that runs without a lease knows of no other, and leaves nothing to it. */ -}}
{{- define "godwit.steps" -}}
{{- $name := include "godwit.name" . -}}
{{- $files := lookup "v1" "ConfigMap" .Release.Namespace $name -}}
{{- $set := lookup "apps/v1" "StatefulSet" .Release.Namespace $name -}}
{{- if and $files $set -}}
{{- $had := dig "node" "lease" "" (dig "data" "godwit.yaml" "" $files | fromYaml) -}}
{{- $wants := dig "node" "lease" "" .Values.config -}}
{{- $several := gt (int .Values.replicas) 1 -}}
{{- $were := max (dig "spec" "replicas" 0 $set | int) (dig "status" "replicas" 0 $set | int) -}}
{{- $settled := and (eq (dig "metadata" "generation" 0 $set | int) (dig "status" "observedGeneration" 0 $set | int)) (eq (dig "status" "currentRevision" "" $set) (dig "status" "updateRevision" "" $set)) -}}
{{- if and $several (not $had) -}}
{{- fail "replicas: the node that runs has no lease, and would lead beside another: first an upgrade to config.node.lease with replicas: 1, then one to more" -}}
{{- else if and $several (lt $were 2) (not $settled) -}}
{{- fail (printf "replicas: %s-0 is not restarted yet since the last upgrade, and may have no lease: again when it is" $name) -}}
{{- else if and (gt $were 1) (not $wants) -}}
{{- fail "config.node.lease: without it what another node has led would be lost: first an upgrade to replicas: 1, then, when the pod is ready, one without the lease" -}}
{{- else if and $had (not $wants) (not $settled) -}}
{{- fail (printf "config.node.lease: %s-0 is not restarted yet since the last upgrade, and may not have what another node has led: again when it is ready" $name) -}}
{{- end -}}
{{- end -}}
{{- end }}
