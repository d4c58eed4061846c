{{/* Labels of every object. */}}
{{- define "sluice.labels" -}}
{{ include "sluice.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that Pods are selected by; they never change. */}}
{{- define "sluice.selectorLabels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The image of a component. */}}
{{- define "sluice.image" -}}
{{- printf "%s/sluice-%s:%s" .root.Values.image.registry .component (.root.Values.image.tag | default .root.Chart.AppVersion) -}}
{{- with (index .root.Values .component).imageDigest }}@{{ . }}{{ end }}
{{- end }}

{{/* What applies to a namespace that no policy selects. */}}
{{- define "sluice.defaultPolicy" -}}
{{- .Values.defaultPolicy | default (ternary "Deny" "Allow" (not (empty .Values.policies))) -}}
{{- end }}

{{/* The name of the serving certificate, and of its secret. */}}
{{- define "sluice.certificate" -}}sluice-controller-tls{{- end }}

{{/* The ConfigMap that says that hooks were applied as if they were none. */}}
{{- define "sluice.notAHook" -}}sluice-not-a-hook{{- end }}

{{/* What no container of ours needs is taken from it. */}}
{{- define "sluice.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sluice.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
