{{/* Name of the objects of a release. */}}
{{- define "finetune-operator.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of the operator's pod. Its name is fixed: the operator's policies for jobs select it. */}}
{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Reference of an image: (list root image). */}}
{{- define "finetune-operator.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Volumes, mounts, environment and defaults of the pods of jobs, as --pod-additions reads them; empty: none. */}}
{{- define "finetune-operator.podAdditions" -}}
{{- with .Values.pods -}}
{{- $defaults := dict -}}
{{- range $block, $fields := .defaults -}}
{{- with $fields }}{{ $_ := set $defaults $block . }}{{ end -}}
{{- end -}}
{{- if or .volumes .volumeMounts .env $defaults -}}
{{- $lists := dict "volumes" .volumes "volumeMounts" .volumeMounts "env" .env -}}
{{- if $defaults }}{{ $_ := set $lists "defaults" $defaults }}{{ end -}}
{{- toJson $lists -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The job policy as --policy reads it; empty: no restriction. */}}
{{- define "finetune-operator.jobPolicy" -}}
{{- $fields := dict -}}
{{- range $name, $value := omit .Values.jobPolicy "admission" -}}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "false")) -}}
{{- $_ := set $fields $name $value -}}
{{- end -}}
{{- end -}}
{{- with $fields }}{{ toPrettyJson . }}{{ end -}}
{{- end -}}

{{/* What the schema cannot express. */}}
{{- define "finetune-operator.check" -}}
{{- /* Not in the schema, whose errors repeat the value. */ -}}
{{- if not (regexMatch "^(https?://[^\\s/?#@\"]+(/[^\\s?#\"]*)?)?$" .Values.storage.endpoint) -}}
{{- fail "storage.endpoint must be an address such as https://s3.example.com, without user name and password; use storage.credentialsSecret" -}}
{{- end -}}
{{- with .Values.pods.terminationGrace -}}
{{- if lt (int64 .maximumSeconds) (int64 .minimumSeconds) -}}
{{- fail (printf "pods.terminationGrace.maximumSeconds must be at least minimumSeconds, %d" (int64 .minimumSeconds)) -}}
{{- end -}}
{{- end -}}
{{- $hasRules := false -}}
{{- range .Values.jobPolicy -}}
{{- if or (kindIs "slice" .) (eq (toString .) "true") }}{{ $hasRules = true }}{{ end -}}
{{- end -}}
{{- if and .Values.jobPolicy.admission.create (not $hasRules) -}}
{{- fail "jobPolicy.admission.create must be false if no field of jobPolicy is set, because there is no job policy; set one, such as jobPolicy.images" -}}
{{- end -}}
{{- if and (gt (int64 .Values.replicas) 1) (not .Values.leaderElection.enabled) -}}
{{- fail "leaderElection.enabled must be true if replicas is more than 1: only the leader reconciles" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.create (not .Values.metrics.service.create) -}}
{{- fail "metrics.service.create must be true if metrics.serviceMonitor.create is: the monitor selects the Service" -}}
{{- end -}}
{{- end -}}
