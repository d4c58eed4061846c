{{- define "sluice.hook" -}}
helm.sh/hook: {{ .on }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "sluice.hookBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "sluice.labels" (dict "root" .root "component" "controller") | nindent 4 }}
  annotations: {{- include "sluice.hook" (dict "on" .on "weight" 0) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{- define "sluice.hookRoleBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "sluice.labels" (dict "root" .root "component" "controller") | nindent 4 }}
  annotations: {{- include "sluice.hook" (dict "on" .on "weight" 0) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .name }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{- define "sluice.hookJob" }}
{{- $labels := dict "root" .root "component" "controller" }}
{{- $hook := dict "root" .root "component" "hook" }}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "sluice.labels" $hook | nindent 4 }}
  annotations: {{- include "sluice.hook" (dict "on" .on "weight" 1) | nindent 4 }}
spec:
  backoffLimit: 3
  activeDeadlineSeconds: 270
  template:
    metadata:
      labels: {{- include "sluice.selectorLabels" $hook | nindent 8 }}
    spec:
      # A container that failed stays, and so does its log.
      restartPolicy: Never
      serviceAccountName: {{ .name }}
      enableServiceLinks: false
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext: {{- include "sluice.podSecurity" .root | nindent 8 }}
      {{- with .root.Values.controller.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.controller.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .root.Values.controller.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "sluice.image" $labels }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          args: {{- toYaml .args | nindent 12 }}
          env:
            - name: POD_NAMESPACE
              valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
          resources: {{- toYaml .root.Values.controller.resources | nindent 12 }}
          securityContext: {{- include "sluice.containerSecurity" .root | nindent 12 }}
          {{- with .refusal }}
          volumeMounts:
            - {name: refusal, mountPath: /etc/sluice/refusal, readOnly: true}
      volumes:
        - name: refusal
          configMap: {name: {{ . }}, optional: true}
          {{- end }}
{{- end }}
