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
