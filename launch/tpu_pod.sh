#!/usr/bin/env bash
# Pretrains on every host of a Cloud TPU VM (one slice or several).
#
#   launch/tpu_pod.sh ACTION --tpu NAME --zone ZONE [options] [-- arguments]
#
#   setup    copy this checkout to every host and install it there
#   run      start `mico-jax pretrain arguments` on every host and follow it
#   doctor   `mico-jax doctor --pod` on every host
#   stop     SIGTERM: the run saves and ends
#
#   --project P       project of the TPU (default: gcloud's)
#   --workers W       hosts, for gcloud's --worker (default all)
#   --hosts N         with doctor: hosts that must be there
#   --python V        with setup: Python to install (default 3.12)
#   --dry-run         print what would run, run nothing
#   -h, --help        this text
#
# Example:
#   launch/tpu_pod.sh setup --tpu v5e --zone us-west4-a
#   launch/tpu_pod.sh run --tpu v5e --zone us-west4-a -- \
#     --config mico_g14 --workdir gs://bucket/runs/g14
#
# The workdir must be one that all hosts see. A host that fails ends the others,
# and each starts again by itself; the same `run` after a preemption resumes.
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
  setup | run | doctor | stop) shift ;;
  -h | --help) usage; exit 0 ;;
  *) die "first setup, run, doctor or stop, got '$action'" ;;
esac
tpu=""
zone=""
project=()
workers=all
hosts=""
python=3.12
dry_run=false
while (($#)); do
  case "$1" in
    --tpu) tpu=$(value "$1" "${2:-}"); shift 2 ;;
    --zone) zone=$(value "$1" "${2:-}"); shift 2 ;;
    --project) project=(--project "$(value "$1" "${2:-}")"); shift 2 ;;
    --workers) workers=$(value "$1" "${2:-}"); shift 2 ;;
    --hosts) hosts=$(value "$1" "${2:-}"); shift 2 ;;
    --python) python=$(value "$1" "${2:-}"); shift 2 ;;
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

case "$action" in
  setup)
    archive=$(mktemp -u "${TMPDIR:-/tmp}/mico_jax.XXXXXX").tar.gz
    run git -C "$root" archive --format=tar.gz --output "$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$tpu:mico_jax.tar.gz" \
      "${where[@]}"
    everywhere "mkdir -p $folder && tar xzf mico_jax.tar.gz -C $folder && $folder/launch/setup.sh --extra tpu --python $(printf %q "$python")"
    run rm -f "$archive"
    ;;
  run)
    text=$(printf '%q ' "$@")
    everywhere "MICO_JAX_COORDINATOR=auto $folder/launch/restart.sh -- $bin/mico-jax pretrain $text"
    ;;
  doctor)
    text=""
    [[ -z $hosts ]] || text=" --hosts $(printf %q "$hosts")"
    everywhere "MICO_JAX_COORDINATOR=auto $bin/mico-jax doctor --pod$text"
    ;;
  stop)
    # The loop passes SIGTERM on and does not start the run again.
    everywhere "pkill -TERM -u \$USER -f '^(/usr/bin/env )?bash [^ ]*launch/restart.sh'"
    ;;
esac
