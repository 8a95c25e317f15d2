{{/* The name of every object: the release's, with the revision behind it, so that revisions stand side by side. */}}
{{- define "tidegate.fullname" -}}
{{- $base := .Release.Name -}}
{{- if not (contains "tidegate" .Release.Name) }}{{ $base = printf "%s-tidegate" .Release.Name }}{{ end -}}
{{- if .Values.fullnameOverride }}{{ $base = .Values.fullnameOverride }}{{ end -}}
{{- if not (or (eq .Values.revision "default") (hasSuffix (printf "-%s" .Values.revision) $base)) }}
{{- $base = printf "%s-%s" $base .Values.revision }}
{{- end -}}
{{- $base | trunc 53 | trimSuffix "-" -}}
{{- end -}}

{{- define "tidegate.selectorLabels" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ include "tidegate.fullname" . }}
app.kubernetes.io/component: injector
{{- end -}}

{{- define "tidegate.labels" -}}
{{ include "tidegate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tidegate
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* One image for the injector and for the sidecars. A digest wins over the tag. */}}
{{- define "tidegate.image" -}}
{{- $name := .Values.image.repository -}}
{{- if .Values.image.registry }}{{ $name = printf "%s/%s" .Values.image.registry $name }}{{ end -}}
{{- if .Values.image.digest -}}
{{ $name }}@{{ .Values.image.digest }}
{{- else -}}
{{ $name }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* Namespaces whose pods are never touched: the cluster's own, this one, and what values name. */}}
{{- define "tidegate.excludedNamespaces" -}}
{{- concat (list "kube-system" "kube-public" "kube-node-lease" .Release.Namespace) .Values.webhook.excludedNamespaces | uniq | toJson -}}
{{- end -}}

{{/* Where the webhook's certificate is. */}}
{{- define "tidegate.tlsSecret" -}}
{{- if eq .Values.certificates.source "provided" -}}
{{ required "certificates.source is provided: name the Secret (tls.crt, tls.key) in certificates.provided.secretName" .Values.certificates.provided.secretName }}
{{- else -}}
{{ include "tidegate.fullname" . }}-tls
{{- end -}}
{{- end -}}

{{/*
The certificate that Helm makes, as JSON: crt, key, ca, previousCa. It is made once; an upgrade finds it in the cluster and
keeps it, so that the API server never trusts another one than the webhook shows. When certificates.generated.rotation has
changed a new one is made, and the CA before it stays trusted: the kubelet hands the new Secret to the pods a minute later.
*/}}
{{- define "tidegate.generatedCertificate" -}}
{{- $name := include "tidegate.fullname" . -}}
{{- $rotation := .Values.certificates.generated.rotation | toString -}}
{{- $days := .Values.certificates.generated.days | int -}}
{{- $found := lookup "v1" "Secret" .Release.Namespace (include "tidegate.tlsSecret" .) -}}
{{- $data := dict -}}
{{- $was := "" -}}
{{- if $found -}}
{{- $data = $found.data | default dict -}}
{{- $was = dig "metadata" "annotations" "tidegate.dev/rotation" "" $found -}}
{{- end -}}
{{- $whole := and (hasKey $data "tls.crt") (hasKey $data "tls.key") (hasKey $data "ca.crt") -}}
{{- if and $whole (eq $was $rotation) -}}
{{- dict "crt" (index $data "tls.crt" | b64dec) "key" (index $data "tls.key" | b64dec) "ca" (index $data "ca.crt" | b64dec)
      "previousCa" (index $data "previous-ca.crt" | default "" | b64dec) | toJson -}}
{{- else -}}
{{- $ca := genCAWithKey (printf "%s CA" $name) $days (genPrivateKey "ecdsa") -}}
{{- $service := printf "%s.%s.svc" $name .Release.Namespace -}}
{{- $crt := genSignedCertWithKey $service nil (list $service (printf "%s.cluster.local" $service)) $days $ca (genPrivateKey "ecdsa") -}}
{{- dict "crt" $crt.Cert "key" $crt.Key "ca" $ca.Cert "previousCa" (index $data "ca.crt" | default "" | b64dec) | toJson -}}
{{- end -}}
{{- end -}}
