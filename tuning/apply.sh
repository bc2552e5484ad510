#!/usr/bin/env bash
# Sets up the CPUs of a host for corelane's shards, and takes that back.
#
#   tuning/apply.sh --cpus 2-3            prints what it would do; needs no root
#   tuning/apply.sh --cpus 2-3 --apply    does it, and records what was there before
#   tuning/apply.sh --revert              restores what was recorded
#
# tuning/README.md says what each knob brings.
set -euo pipefail
export LC_ALL=C

readonly USAGE="usage: apply.sh --cpus LIST [--apply] [--shallow-idle] [--state FILE] [--root DIR]
       apply.sh --revert [--state FILE] [--root DIR]

  --cpus LIST      the shards' CPUs, such as 2-3,8
  --apply          write; without it nothing is changed
  --shallow-idle   also keep these CPUs out of idle states that take over 10 us to leave
  --revert         restore what --apply recorded, and forget the record
  --state FILE     where that is recorded (/var/lib/corelane-tuning/state)
  --root DIR       look for /proc and /sys below DIR: for tests"

# A state that a CPU leaves within this is no matter beside a wake-up of tens of microseconds.
readonly IDLE_LATENCY_US_MAX=10

root=""
state="/var/lib/corelane-tuning/state"
cpus=""
mode="dry"
shallow_idle="no"
changes=0
failures=0

refuse() {
  printf 'apply.sh: %s; --help says more\n' "$1" >&2
  exit 2
}

parse_arguments() {
  while [[ $# -gt 0 ]]; do
    case "$1" in
      --cpus | --state | --root)
        [[ -n "${2:-}" ]] || refuse "$1 needs a value"
        case "$1" in
          --cpus) cpus="$2" ;;
          --state) state="$2" ;;
          --root) root="${2%/}" ;;
        esac
        shift
        ;;
      --apply)
        [[ "$mode" != revert ]] || refuse "--apply and --revert contradict each other"
        mode="apply"
        ;;
      --revert)
        [[ "$mode" != apply ]] || refuse "--apply and --revert contradict each other"
        mode="revert"
        ;;
      --shallow-idle) shallow_idle="yes" ;;
      --help)
        printf '%s\n' "$USAGE"
        exit 0
        ;;
      *) refuse "there is no argument $1" ;;
    esac
    shift
  done
  if [[ "$mode" == revert ]]; then
    [[ -z "$cpus" && "$shallow_idle" == no ]] || refuse "--revert takes back all that is recorded"
  else
    [[ -n "$cpus" ]] || refuse "--cpus must name the shards' CPUs"
  fi
}

# The numbers of a list such as 0-3,8, one a line; nothing for what is no such list.
expand() {
  [[ "$1" =~ ^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$ ]] || return 0
  local part first last all=""
  for part in ${1//,/ }; do
    first="$((10#${part%-*}))" last="$((10#${part#*-}))"
    ((first <= last)) || return 0
    all+="$(seq "$first" "$last")"$'\n'
  done
  printf '%s' "$all"
}

# Those of the first list that are not in the second: lines in, a list such as 0,1,4 out.
without() {
  comm -23 <(sort -u <<<"$1") <(sort -u <<<"$2") | sort -n | paste -s -d , -
}

# The value that a file has now. One that offers words marks it by brackets.
value_of() {
  local text
  text="$(<"$1")"
  if [[ "$text" == *"["*"]"* ]]; then
    text="${text#*[}"
    text="${text%%]*}"
  fi
  printf '%s' "$text"
}

# What was there first is what counts, so a path is recorded once, and before it is written.
record() {
  if [[ -f "$state" ]] && grep -q -F -- "$1 " "$state"; then
    return 1
  fi
  mkdir -p -- "$(dirname -- "$state")"
  printf '%s %s\n' "$1" "$2" >>"$state"
}

# write PATH VALUE: sets it, or says that it would.
write() {
  local path="$1" value="$2" old is_new="yes"
  old="$(value_of "$root$path")"
  changes=$((changes + 1))
  if [[ "$mode" == dry ]]; then
    printf 'would set %s: %s -> %s\n' "$path" "$old" "$value"
    return
  fi
  record "$path" "$old" || is_new="no"
  if printf '%s\n' "$value" 2>/dev/null >"$root$path"; then
    printf 'set %s: %s -> %s\n' "$path" "$old" "$value"
    return
  fi
  # Nothing was changed, so there is nothing to restore.
  [[ "$is_new" == no ]] || sed -i '$d' "$state"
  printf 'cannot set %s to %s\n' "$path" "$value" >&2
  failures=$((failures + 1))
}

# set_to PATH VALUE: only where the file is there and says something else.
set_to() {
  [[ -f "$root$1" ]] || return 0
  [[ "$(value_of "$root$1")" == "$2" ]] || write "$1" "$2"
}

tune_frequency() {
  local cpu directory
  for cpu in $shard_cpus; do
    directory="/sys/devices/system/cpu/cpu$cpu/cpufreq"
    if [[ -f "$root$directory/scaling_available_governors" ]] &&
      ! grep -q -w performance "$root$directory/scaling_available_governors"; then
      continue
    fi
    set_to "$directory/scaling_governor" performance
  done
}

tune_idle_states() {
  local cpu directory
  for cpu in $shard_cpus; do
    for directory in "$root/sys/devices/system/cpu/cpu$cpu/cpuidle/"state*; do
      [[ -f "$directory/latency" ]] || continue
      (($(<"$directory/latency") > IDLE_LATENCY_US_MAX)) || continue
      set_to "${directory#"$root"}/disable" 1
    done
  done
}

# An interrupt keeps the CPUs that it has, but for the shards'.
tune_interrupts() {
  local file current kept others
  others="$(without "$online_cpus" "$shard_cpus")"
  if [[ -z "$others" ]]; then
    printf 'interrupts stay where they are: the shards have every CPU\n'
    return
  fi
  for file in "$root"/proc/irq/[0-9]*/smp_affinity_list; do
    [[ -f "$file" ]] || continue
    current="$(expand "$(<"$file")")"
    kept="$(without "$current" "$shard_cpus")"
    [[ "$kept" != "$(without "$current" "")" ]] || continue
    write "${file#"$root"}" "${kept:-$others}"
  done
}

tune_memory() {
  local thp="/sys/kernel/mm/transparent_hugepage/enabled"
  if [[ -f "$root$thp" && "$(value_of "$root$thp")" == always ]]; then
    set_to "$thp" madvise
  fi
  # Where there is but one node, nothing is balanced.
  local nodes="$root/sys/devices/system/node/online"
  if [[ -f "$nodes" && "$(<"$nodes")" == *[-,]* ]]; then
    set_to /proc/sys/kernel/numa_balancing 0
  fi
}

revert() {
  if [[ ! -f "$state" ]]; then
    printf 'nothing is recorded in %s\n' "$state"
    return
  fi
  local path old left=""
  while read -r path old; do
    if [[ ! -f "$root$path" ]]; then
      printf '%s is gone\n' "$path"
    elif printf '%s\n' "$old" 2>/dev/null >"$root$path"; then
      printf 'set %s: %s\n' "$path" "$old"
    else
      printf 'cannot set %s to %s\n' "$path" "$old" >&2
      left+="$path $old"$'\n'
      failures=$((failures + 1))
    fi
  done <"$state"
  if [[ -n "$left" ]]; then
    printf '%s' "$left" >"$state"
  else
    rm -f -- "$state"
  fi
}

main() {
  parse_arguments "$@"
  if [[ "$mode" == revert ]]; then
    revert
  else
    shard_cpus="$(expand "$cpus")"
    [[ -n "$shard_cpus" ]] || refuse "$cpus is no list of CPUs such as 2-3,8"
    [[ -f "$root/sys/devices/system/cpu/online" ]] || refuse "$root/sys tells of no CPUs"
    online_cpus="$(expand "$(<"$root/sys/devices/system/cpu/online")")"
    local absent
    absent="$(without "$shard_cpus" "$online_cpus")"
    [[ -z "$absent" ]] || refuse "these CPUs are not online: $absent"
    tune_frequency
    [[ "$shallow_idle" == no ]] || tune_idle_states
    tune_interrupts
    tune_memory
    [[ "$changes" -gt 0 ]] || printf 'all is as it should be\n'
    if [[ "$mode" == dry && "$changes" -gt 0 ]]; then
      printf 'nothing was changed: --apply does it\n'
    fi
  fi
  if [[ "$failures" -gt 0 ]]; then
    printf 'apply.sh: %s not set: root may, unless the device forbids it\n' "$failures" >&2
    exit 1
  fi
}

main "$@"
