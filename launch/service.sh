#!/usr/bin/env bash
# Keeps a pretraining run of this host going as a systemd service.
#
#   launch/service.sh ACTION [options] [-- arguments of `mico-jax pretrain`]
#
#   start    writes the service and starts it; it starts again with the host
#   follow   shows the log until the run ends; gives its exit status
#   logs     whether it runs, and the last lines of its log
#   stop     SIGTERM: the run saves and ends; it does not start with the host
#
#   --env DIR     the environment (default ~/.mico_jax_env)
#   --lines N     with logs: how many lines (default 100)
#   --dry-run     print the service and the commands, run nothing
#   -h, --help    this text
#
# The log is ~/mico_jax.log. launch/restart.sh starts the run again when it ends
# in a way that resumes, at most 100 times; a service that ended with 0 or 2 (a
# mistake in config or data) does not start with the host any more. Compiled
# programs are kept in ~/.cache/mico_jax/compiled. Needs sudo.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/service.sh: $*" >&2
  exit 2
}

value() {
  [[ -n "${2:-}" ]] || die "$1 needs a value"
  echo "$2"
}

action=${1:-}
case "$action" in
  start | follow | logs | stop) shift ;;
  -h | --help) usage; exit 0 ;;
  *) die "first start, follow, logs or stop, got '$action'" ;;
esac
env=$HOME/.mico_jax_env
lines=100
dry_run=false
while (($#)); do
  case "$1" in
    --env) env=$(value "$1" "${2:-}"); shift 2 ;;
    --lines) lines=$(value "$1" "${2:-}"); shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) die "unknown option '$1'; arguments of pretrain go behind --" ;;
  esac
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name=mico_jax.service
unit=${MICO_JAX_UNITS:-/etc/systemd/system}/$name
log=$HOME/mico_jax.log
script=$HOME/.mico_jax_service.sh

run() {
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The command lies in a file of its own: systemd quotes in another way.
script_text() {
  cat << SCRIPT
#!/usr/bin/env bash
export MICO_JAX_COORDINATOR=auto
export JAX_COMPILATION_CACHE_DIR=$(printf %q "$HOME/.cache/mico_jax/compiled")
exec $(printf '%q ' "$here/restart.sh" -- "$env/bin/mico-jax" pretrain "$@")
SCRIPT
}

unit_text() {
  cat << UNIT
[Unit]
Description=mico_jax pretraining
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=3600
StartLimitBurst=10

[Service]
User=$(id -un)
WorkingDirectory=$HOME
ExecStart=/bin/bash $script
Restart=on-abnormal
RestartSec=5
KillMode=mixed
TimeoutStopSec=300
StandardOutput=append:$log
StandardError=append:$log
ExecStopPost=+/bin/sh -c 'case "\$\$EXIT_STATUS" in 0|2) systemctl disable $name;; esac'

[Install]
WantedBy=multi-user.target
UNIT
}

active() { systemctl is-active --quiet "$name"; }

case "$action" in
  start)
    (($#)) || die "needs the arguments of pretrain behind --"
    if $dry_run; then
      script_text "$@" | sed "s|^|$script: |"
      unit_text | sed "s|^|$unit: |"
    else
      ! active || die "a run is going on here; first launch/service.sh stop"
      script_text "$@" > "$script"
      unit_text | sudo tee "$unit" > /dev/null
    fi
    run sudo systemctl daemon-reload
    run sudo systemctl enable "$name"
    run sudo systemctl start "$name"
    ;;
  follow)
    pid=$(systemctl show --property MainPID --value "$name")
    if ((pid > 0)); then
      run tail --lines 5 --pid "$pid" --follow=name --retry "$log"
      while active; do sleep 1; done
    fi
    status=$(systemctl show --property ExecMainStatus --value "$name")
    exit "${status:-1}"
    ;;
  logs)
    run systemctl --no-pager --lines 0 status "$name" || true
    run tail --lines "$lines" "$log"
    ;;
  stop)
    # The loop passes SIGTERM on and does not start the run again.
    run sudo systemctl disable --now "$name"
    ;;
esac
