#!/usr/bin/env bash
# Pretrains on this machine with one or several processes.
#
#   launch/local.sh [options] [--] [arguments of `mico-jax pretrain`]
#
#   -n, --processes N           processes (default 1)
#   --devices-per-process K     process i uses devices i*K ... i*K+K-1 (GPUs);
#                               default: every process sees what JAX gives it
#   --cpu-devices K             CPU devices of each process, for trying out a
#                               mesh; also sets JAX_PLATFORMS=cpu
#   --port P                    port of process 0 (default: a random one)
#   --restarts N                start all again, at most N times, when they end
#                               in a way that resumes (launch/restart.sh)
#   --dry-run                   print what would run, run nothing
#   -h, --help                  this text
#
# Example: launch/local.sh -n 2 --cpu-devices 2 -- --config demo
#
# Process 0 shows its progress here; the others write to
# ${TMPDIR:-/tmp}/mico_jax_local.*/process_<i>.log. SIGTERM and Ctrl-C are
# passed on, so that every process saves and stops. When one fails, the others
# are asked to stop and, waiting for the lost one, are ended after a while. The
# exit status is that of the first process that failed, else 0.
set -euo pipefail

usage() { sed -n '2,/^set -euo/{/^set -euo/d;s/^# \{0,1\}//;p}' "$0"; }

die() {
  echo "launch/local.sh: $*" >&2
  exit 2
}

number() {
  [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "$1 needs a number, got '${2:-}'"
  echo "$2"
}

processes=1
per_process=""
cpu_devices=""
port=""
restarts=0
dry_run=false
given=()
while (($#)); do
  case "$1" in
    -n | --processes) processes=$(number "$1" "${2:-}"); shift 2 ;;
    --devices-per-process) per_process=$(number "$1" "${2:-}"); shift 2 ;;
    --cpu-devices) cpu_devices=$(number "$1" "${2:-}"); shift 2 ;;
    --port) port=$(number "$1" "${2:-}"); shift 2 ;;
    --restarts) restarts=$(number "$1" "${2:-}"); shift 2 ;;
    --dry-run) dry_run=true; shift ;;
    -h | --help) usage; exit 0 ;;
    --) shift; break ;;
    *) break ;;
  esac
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ((restarts > 0)) && ! $dry_run; then
  given=(-n "$processes")
  [[ -z $per_process ]] || given+=(--devices-per-process "$per_process")
  [[ -z $cpu_devices ]] || given+=(--cpu-devices "$cpu_devices")
  [[ -z $port ]] || given+=(--port "$port")
  exec "$here/restart.sh" --restarts "$restarts" -- \
    "$here/local.sh" "${given[@]}" -- "$@"
fi

# The command of this environment; without it, the checkout's module.
if command -v mico-jax > /dev/null; then
  command=(mico-jax pretrain "$@")
else
  command=(python -m mico_jax pretrain "$@")
fi
[[ -n "$port" ]] || port=$((20000 + RANDOM % 20000))

# Prints the variables of process $1, one a line.
variables() {
  if ((processes > 1)); then
    echo "MICO_JAX_COORDINATOR=127.0.0.1:$port"
    echo "MICO_JAX_NUM_PROCESSES=$processes"
    echo "MICO_JAX_PROCESS_ID=$1"
  fi
  if [[ -n "$per_process" ]]; then
    local ids
    ids=$(seq -s, $(($1 * per_process)) $(($1 * per_process + per_process - 1)))
    echo "MICO_JAX_LOCAL_DEVICES=$ids"
  fi
  if [[ -n "$cpu_devices" ]]; then
    echo "JAX_PLATFORMS=cpu"
    echo "XLA_FLAGS=--xla_force_host_platform_device_count=$cpu_devices"
  fi
}

if $dry_run; then
  ((restarts == 0)) || echo "# all again, at most $restarts times:"
  for ((i = 0; i < processes; i++)); do
    mapfile -t vars < <(variables "$i")
    ((${#vars[@]} == 0)) || printf '%q ' env "${vars[@]}"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

if ((processes == 1)); then
  mapfile -t vars < <(variables 0)
  exec env "${vars[@]}" "${command[@]}"
fi

logs=$(mktemp -d "${TMPDIR:-/tmp}/mico_jax_local.XXXXXX")
pids=()
# Passes a signal on to every process; they save and end by themselves.
# shellcheck disable=SC2329  # called by the traps
forward() {
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2> /dev/null || true; done
}
trap 'forward TERM' TERM INT

for ((i = 0; i < processes; i++)); do
  mapfile -t vars < <(variables "$i")
  if ((i == 0)); then
    env "${vars[@]}" "${command[@]}" &
  else
    env "${vars[@]}" "${command[@]}" > "$logs/process_$i.log" 2>&1 &
  fi
  pids+=("$!")
done
echo "$processes processes; logs of the others in $logs" >&2

status=0
killer=""
running=$processes
while ((running > 0)); do
  code=0
  finished=""
  wait -n -p finished "${pids[@]}" || code=$?
  # A trapped signal interrupts `wait` without naming a process.
  [[ -n "${finished:-}" ]] || continue
  running=$((running - 1))
  rest=()
  for i in "${!pids[@]}"; do
    if [[ "${pids[$i]}" == "$finished" ]]; then
      if ((code != 0 && status == 0)); then
        status=$code
        echo "a process ended with status $code; stopping the others" >&2
        tail -n 5 "$logs"/*.log >&2
        forward TERM
        # Peers of a killed process wait for it in a collective, for ever.
        # The others are saving.
        patience=60
        case "$code" in 75 | 76 | 134 | 137) patience=${MICO_JAX_GRACE:-5} ;; esac
        (
          sleep "$patience"
          for pid in "${pids[@]}"; do kill -KILL "$pid" 2> /dev/null || true; done
        ) > /dev/null 2>&1 &
        killer=$!
      fi
    else
      rest+=("${pids[$i]}")
    fi
  done
  pids=("${rest[@]}")
done
[[ -z $killer ]] || kill "$killer" 2> /dev/null || true
exit "$status"
