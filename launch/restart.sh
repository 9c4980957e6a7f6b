#!/usr/bin/env bash
# Runs a command and, while it ends in a way from which its next start resumes,
# runs it again.
#
#   launch/restart.sh [options] [--] command [arguments]
#
#   -n, --restarts N   most restarts (default 1000)
#   --delay S          seconds before a restart (default 5)
#   --dry-run          print what would run, run nothing
#   -h, --help         this text
#
# Final are 0, 2 (a mistake in config or data: the same again would not help)
# and what follows a SIGTERM or SIGINT sent to this script, which is passed on.
# Killed processes (137), lost peers (75), hung steps (76) and defects start
# again. Ten failures in a row within a minute of the start end the loop.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/restart.sh: $*" >&2
  exit 2
}

number() {
  [[ "${2:-}" =~ ^[0-9]+$ ]] || die "$1 needs a number, got '${2:-}'"
  echo "$2"
}

restarts=1000
delay=5
dry_run=false
while (($#)); do
  case "$1" in
    -n | --restarts) restarts=$(number "$1" "${2:-}"); shift 2 ;;
    --delay) delay=$(number "$1" "${2:-}"); shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) break ;;
  esac
done
(($#)) || die "needs a command"

if $dry_run; then
  printf '%q ' "$@"
  echo
  exit 0
fi

stopping=false
child=""
# shellcheck disable=SC2329  # called by the traps
forward() {
  stopping=true
  [[ -z $child ]] || kill "-$1" "$child" 2> /dev/null || true
}
trap 'forward TERM' TERM
trap 'forward INT' INT

quick=0
for ((attempt = 0; ; attempt++)); do
  began=$SECONDS
  "$@" &
  child=$!
  code=0
  wait "$child" || code=$?
  # A trapped signal interrupts `wait`; the command is still saving then.
  while kill -0 "$child" 2> /dev/null; do
    code=0
    wait "$child" || code=$?
  done
  if $stopping || ((code == 0 || code == 2)); then exit "$code"; fi
  if ((attempt >= restarts)); then
    echo "status $code after $restarts restarts; giving up" >&2
    exit "$code"
  fi
  quick=$((SECONDS - began < 60 ? quick + 1 : 0))
  if ((quick >= 10)); then
    echo "status $code, ten times within a minute each; giving up" >&2
    exit "$code"
  fi
  echo "status $code; starting again in $delay s" >&2
  sleep "$delay" &
  child=$!
  wait "$child" || true
  if $stopping; then exit "$code"; fi
done
