#!/usr/bin/env bash
# Writes, or applies, the JobSet that pretrains on TPU slices of a GKE cluster.
#
#   launch/gke.sh --name NAME --accelerator A --topology T --hosts N \
#     [options] -- arguments of `mico-jax pretrain`
#
#   --accelerator A   node label, e.g. tpu-v5-lite-podslice, tpu-v5p-slice,
#                     tpu-v6e-slice
#   --topology T      of a slice, e.g. 16x16
#   --hosts N         hosts of a slice (v5e 16x16: 64)
#   --chips K         chips of a host (default 4)
#   --slices S        slices (default 1); set parallel.slices to match
#   --source URL      what pip installs (default mico-jax; e.g. git+https://...)
#   --image I         any image with bash and curl (default: uv's own)
#   --restarts R      restarts of the whole set (default 1000)
#   --apply           kubectl apply instead of printing
#   --dry-run         print the YAML and the kubectl command, run nothing
#   -h, --help        this text
#
# Example:
#   launch/gke.sh --name g14 --accelerator tpu-v5-lite-podslice \
#     --topology 16x16 --hosts 64 -- \
#     --config mico_g14 --workdir gs://bucket/runs/g14 | kubectl apply -f -
#
# A container brings its own Python (uv). A host that fails restarts the set,
# and the run resumes; SIGTERM (a drained node) saves first.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/gke.sh: $*" >&2
  exit 2
}

value() {
  [[ -n "${2:-}" ]] || die "$1 needs a value"
  echo "$2"
}

number() {
  [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number, got '${2:-}'"
  echo "$2"
}

name=""
accelerator=""
topology=""
hosts=""
chips=4
slices=1
source=mico-jax
image=ghcr.io/astral-sh/uv:python3.12-bookworm
restarts=1000
apply=false
dry_run=false
while (($#)); do
  case "$1" in
    --name) name=$(value "$1" "${2:-}"); shift 2 ;;
    --accelerator) accelerator=$(value "$1" "${2:-}"); shift 2 ;;
    --topology) topology=$(value "$1" "${2:-}"); shift 2 ;;
    --hosts) hosts=$(number "$1" "${2:-}"); shift 2 ;;
    --chips) chips=$(number "$1" "${2:-}"); shift 2 ;;
    --slices) slices=$(number "$1" "${2:-}"); shift 2 ;;
    --source) source=$(value "$1" "${2:-}"); shift 2 ;;
    --image) image=$(value "$1" "${2:-}"); shift 2 ;;
    --restarts) restarts=$(number "$1" "${2:-}"); shift 2 ;;
    --apply) apply=true; shift ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) die "unknown option '$1'; arguments of pretrain go behind --" ;;
  esac
done
[[ -n $name && -n $accelerator && -n $topology && -n $hosts ]] ||
  die "needs --name, --accelerator, --topology and --hosts"
[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  die "--name '$name': lower-case letters, digits and dashes"
(($#)) || die "needs the arguments of pretrain behind --"

# A text as a YAML string in single quotes.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

package=$source
[[ $source == *" @ "* || $source == *"["* ]] || case "$source" in
  *://*) package="mico-jax[tpu] @ $source" ;;
  *) package="${source}[tpu]" ;;
esac
script="set -e; uv venv --python 3.12 /opt/mico_jax; uv pip install --python"
script+=" /opt/mico_jax/bin/python $(printf %q "$package");"
script+=" exec /opt/mico_jax/bin/mico-jax pretrain $(printf '%q ' "$@")"

yaml() {
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        completionMode: Indexed
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 300
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $(quoted "$topology")
            containers:
            - name: mico-jax
              image: $(quoted "$image")
              ports:
              - containerPort: 8471
              - containerPort: 8080
              securityContext:
                privileged: true
              env:
              - name: MICO_JAX_COORDINATOR
                value: auto
              command: [bash, -c]
              args:
              - $(quoted "$script")
              resources:
                limits:
                  google.com/tpu: $chips
YAML
}

if $dry_run; then
  yaml
  if $apply; then echo "# kubectl apply -f -"; fi
elif $apply; then
  yaml | kubectl apply -f -
else
  yaml
fi
