#!/usr/bin/env bash
# Installs this checkout with a Python of its own on the host it runs on.
#
#   launch/setup.sh [options]
#
#   --extra NAME     what to install besides: tpu, cuda or none (default tpu)
#   --python V       version of Python that uv fetches (default 3.12)
#   --env DIR        the environment (default ~/.mico_jax_env)
#   --pinned         exactly the versions of launch/constraints.txt
#   --dry-run        print what would run, run nothing
#   -h, --help       this text
#
# Images of TPU VMs still carry Python 3.10; nothing of it is used or changed.
# A second run changes nothing but the package itself.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/setup.sh: $*" >&2
  exit 2
}

value() {
  [[ -n "${2:-}" ]] || die "$1 needs a value"
  echo "$2"
}

extra=tpu
python=3.12
env=$HOME/.mico_jax_env
pinned=false
dry_run=false
while (($#)); do
  case "$1" in
    --extra) extra=$(value "$1" "${2:-}"); shift 2 ;;
    --python) python=$(value "$1" "${2:-}"); shift 2 ;;
    --env) env=$(value "$1" "${2:-}"); shift 2 ;;
    --pinned) pinned=true; shift ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) die "unknown option '$1'" ;;
  esac
done
case "$extra" in tpu | cuda | none) ;; *) die "--extra: tpu, cuda or none" ;; esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
uv=$(command -v uv || echo "$HOME/.local/bin/uv")

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

if [[ ! -x $uv ]]; then
  run sh -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
fi
if [[ ! -x $env/bin/python ]]; then
  run "$uv" venv --python "$python" "$env"
fi
package=$root
[[ $extra == none ]] || package="${root}[$extra]"
arguments=(--python "$env/bin/python")
if $pinned; then arguments+=(--constraint "$root/launch/constraints.txt"); fi
run "$uv" pip install "${arguments[@]}" --editable "$package"
