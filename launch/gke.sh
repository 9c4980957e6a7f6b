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
#   --image I         image with mico_jax, made by launch/Dockerfile, with a
#                     fixed tag or digest: REGISTRY/mico_jax:v1
#   --build           builds that image from what is committed here, and pushes
#                     it (docker)
#   --source URL      instead of an image: what pip installs when a container
#                     starts, pinned: git+https://HOST/REPOSITORY@COMMIT, or the
#                     URL of a wheel
#   --restarts R      restarts of the whole set (default 100)
#   --apply           kubectl apply instead of printing
#   --dry-run         print the YAML and the kubectl command, run nothing
#   -h, --help        this text
#
# Example:
#   launch/gke.sh --name g14 --accelerator tpu-v5-lite-podslice \
#     --topology 16x16 --hosts 64 --image REGISTRY/mico_jax:v1 --build --apply \
#     -- --config mico_g14 --workdir gs://bucket/runs/g14
#
# A host that fails restarts the set, and the run resumes; SIGTERM (a drained
# node) saves first. Status 2, a mistake in config or data, ends the set at once:
# the same again would not help. Compiled programs stay on the nodes for the next
# start, in /tmp/mico_jax_compiled.
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
source=""
image=""
build=false
restarts=100
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
    --build) build=true; shift ;;
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

if [[ -n $source ]]; then
  [[ -z $image ]] && ! $build || die "either --image or --source"
  case "$source" in
    git+*://*/*@?* | *://*.whl) ;;
    *) die "--source '$source': git+https://HOST/REPOSITORY@COMMIT or a wheel" ;;
  esac
  image=ghcr.io/astral-sh/uv:python3.12-bookworm
  script="set -e; uv venv --python 3.12 /opt/mico_jax; uv pip install --python"
  script+=" /opt/mico_jax/bin/python"
  script+=" $(printf %q "mico-jax[tpu,gcs] @ $source");"
  script+=" exec /opt/mico_jax/bin/mico-jax"
else
  [[ -n $image ]] || die "needs --image (see launch/Dockerfile) or --source"
  last=${image##*/}
  [[ $last == *:* && $last != *:latest ]] ||
    die "--image '$image': needs a fixed tag or digest, so that all hosts and" \
      "restarts run the same"
  script="exec mico-jax"
fi
script+=" pretrain $(printf '%q ' "$@")"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if $build; then
  archive=$(mktemp -u "${TMPDIR:-/tmp}/mico_jax.XXXXXX").tar
  steps=("$here/checkout.sh $(printf %q "$archive")"
    "docker build --file launch/Dockerfile --tag $(printf %q "$image") - < $(printf %q "$archive")"
    "rm -f $(printf %q "$archive")"
    "docker push $(printf %q "$image")")
  for step in "${steps[@]}"; do
    if $dry_run; then echo "# $step"; else bash -c "$step" >&2; fi
  done
fi

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
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        completionMode: Indexed
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: mico-jax
              operator: In
              values: [2]
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
              - name: JAX_COMPILATION_CACHE_DIR
                value: /compiled
              volumeMounts:
              - name: compiled
                mountPath: /compiled
              command: [bash, -c]
              args:
              - $(quoted "$script")
              resources:
                limits:
                  google.com/tpu: $chips
            volumes:
            - name: compiled
              hostPath:
                path: /tmp/mico_jax_compiled
                type: DirectoryOrCreate
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
