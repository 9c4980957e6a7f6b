#!/usr/bin/env bash
# Pretrains on every host of a Cloud TPU VM (one slice or several).
#
#   launch/tpu_pod.sh ACTION --tpu NAME --zone ZONE [options] [-- arguments]
#
#   setup    copy this checkout to every host and install it there
#   run      start `mico-jax pretrain arguments` on every host and follow it;
#            before that setup, if a host has no installation (a recreated VM)
#   logs     whether it runs on every host, and the last lines of its log there
#   doctor   `mico-jax doctor --pod` on every host
#   stop     SIGTERM: the run saves and ends
#
#   --project P       project of the TPU (default: gcloud's)
#   --workers W       hosts, for gcloud's --worker (default all)
#   --hosts N         with doctor: hosts that must be there
#   --python V        with setup: Python to install (default 3.12)
#   --uncommitted     with setup: also what is not committed; by default the
#                     last commit is copied, and what it leaves out is named
#   --dry-run         print what would run, run nothing
#   -h, --help        this text
#
# Example:
#   launch/tpu_pod.sh setup --tpu v5e --zone us-west4-a
#   launch/tpu_pod.sh run --tpu v5e --zone us-west4-a -- \
#     --config mico_g14 --workdir gs://bucket/runs/g14
#
# The workdir must be one that all hosts see. On each host the run is a systemd
# service (launch/service.sh): it goes on when this command ends or the
# connection breaks, and starts with the host. A host that fails ends the
# others, and each starts again by itself, at most 100 times; the same `run`
# after a preemption resumes.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/tpu_pod.sh: $*" >&2
  exit 2
}

value() {
  [[ -n "${2:-}" ]] || die "$1 needs a value"
  echo "$2"
}

action=${1:-}
case "$action" in
  setup | run | logs | doctor | stop) shift ;;
  -h | --help) usage; exit 0 ;;
  *) die "first setup, run, logs, doctor or stop, got '$action'" ;;
esac
tpu=""
zone=""
project=()
workers=all
hosts=""
python=3.12
uncommitted=()
dry_run=false
while (($#)); do
  case "$1" in
    --tpu) tpu=$(value "$1" "${2:-}"); shift 2 ;;
    --zone) zone=$(value "$1" "${2:-}"); shift 2 ;;
    --project) project=(--project "$(value "$1" "${2:-}")"); shift 2 ;;
    --workers) workers=$(value "$1" "${2:-}"); shift 2 ;;
    --hosts) hosts=$(value "$1" "${2:-}"); shift 2 ;;
    --python) python=$(value "$1" "${2:-}"); shift 2 ;;
    --uncommitted) uncommitted=(--uncommitted); shift ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) die "unknown option '$1'; arguments of pretrain go behind --" ;;
  esac
done
[[ -n $tpu && -n $zone ]] || die "needs --tpu and --zone"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
where=(--zone "$zone" "${project[@]}" "--worker=$workers")
# Paths of the hosts, relative to the home folder there.
folder=mico_jax
bin=.mico_jax_env/bin

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Runs the shell text $1 on every host.
everywhere() {
  run gcloud compute tpus tpu-vm ssh "$tpu" "${where[@]}" --command "$1"
}

setup() {
  local archive
  archive=$(mktemp -u "${TMPDIR:-/tmp}/mico_jax.XXXXXX").tar.gz
  run "$root/launch/checkout.sh" "${uncommitted[@]}" "$archive"
  run gcloud compute tpus tpu-vm scp "$archive" "$tpu:mico_jax.tar.gz" \
    "${where[@]}"
  everywhere "rm -rf $folder && mkdir $folder && tar xzf mico_jax.tar.gz -C $folder && $folder/launch/setup.sh --extra tpu --python $(printf %q "$python")"
  run rm -f "$archive"
}

case "$action" in
  setup) setup ;;
  run)
    text=$(printf '%q ' "$@")
    if ! everywhere "test -x $bin/mico-jax && test -x $folder/launch/service.sh"; then
      echo "a host has no installation (a recreated VM?): setup first" >&2
      setup
    fi
    everywhere "$folder/launch/service.sh start -- $text"
    everywhere "$folder/launch/service.sh follow"
    ;;
  logs) everywhere "$folder/launch/service.sh logs" ;;
  doctor)
    text=""
    [[ -z $hosts ]] || text=" --hosts $(printf %q "$hosts")"
    everywhere "MICO_JAX_COORDINATOR=auto $bin/mico-jax doctor --pod$text"
    ;;
  stop) everywhere "$folder/launch/service.sh stop" ;;
esac
