#!/usr/bin/env bash
# relayd as a process: how it starts, tells that it is ready, drains, and which code it exits with.
# Usage: main_test.sh RELAYD RELAYD_POISONED
set -u
relayd=$1
poisoned=$2
work=$(mktemp -d) || exit 1
pids=()
clean_up() {
  for pid in "${pids[@]+"${pids[@]}"}"; do
    kill -KILL "$pid" 2>/dev/null
  done
  rm -rf "$work"
}
trap clean_up EXIT

failed=0
check() { # WHAT GOT WANT
  if [ "$2" = "$3" ]; then
    echo "ok   $1"
  else
    echo "FAIL $1: \"$2\" instead of \"$3\""
    failed=$((failed + 1))
  fi
}

# start PROGRAM ARGUMENTS...: sets pid and port when it is ready; empty port when it ended first.
start() {
  local fifo=$work/ready.$RANDOM line
  mkfifo "$fifo"
  "$@" --ready-fd 9 9>"$fifo" 2>>"$work/log" &
  pid=$!
  pids+=("$pid")
  port=""
  IFS= read -r line <"$fifo" && port=${line#ready port=}
}
ended() { # sets code: that of the last one started
  wait "$pid" 2>/dev/null
  code=$?
}
run() { # ARGUMENTS...: the exit code of a relayd that ends by itself; what it says in $work/said
  timeout 60 "$relayd" "$@" >"$work/said" 2>&1
  echo $?
}

# Without arguments for the environment of whoever runs this.
for name in $(env | sed -n 's/^\(RELAYD_[A-Z_]*\)=.*/\1/p'); do
  unset "$name"
done

check "--version exits 0" "$(run --version)" 0
check "--version says a name" "$(cut -d' ' -f1 "$work/said")" relayd
check "--help exits 0" "$(run --help)" 0
check "--print-config exits 0" "$(run --print-config --threads=3)" 0
check "--print-config prints it" "$(grep '^threads = 3' "$work/said")" "threads = 3 ; flag"

check "an unknown flag exits 64" "$(run --nonsense)" 64
check "and is named" "$(grep -c -- --nonsense "$work/said")" 1
check "an unknown backend exits 64" "$(run --listen 127.0.0.1:0 --backend nonsense)" 64
check "a port past 65535 exits 64" "$(run --listen 127.0.0.1:65536)" 64
check "an address without a port exits 64" "$(run --listen 127.0.0.1)" 64
check "a descriptor that is not open exits 64" "$(run --listen 127.0.0.1:0 --ready-fd 99)" 64
check "a socket without a directory exits 69" "$(run --listen "unix:$work/no/s")" 69
touch "$work/file"
check "a file in the socket's place exits 69" "$(run --listen "unix:$work/file")" 69
check "and stays" "$([ -f "$work/file" ] && echo there)" there

start "$relayd" --listen "unix:$work/s" --listen 127.0.0.1:0
check "the port is told, the unix socket's place is not" "$([ "${port:-0}" -gt 0 ] && echo yes)" yes
check "the socket is there" "$([ -S "$work/s" ] && echo there)" there
check "a served socket exits 69" "$(run --listen "unix:$work/s")" 69
check "a served port exits 69" "$(run --listen "127.0.0.1:$port")" 69
check "the socket is still there" "$([ -S "$work/s" ] && echo there)" there
kill -HUP "$pid"
kill -TERM "$pid"
ended
check "SIGTERM drains and exits 0" "$code" 0
check "the socket is gone" "$([ -e "$work/s" ] || echo gone)" gone

start "$relayd" --listen "unix:$work/s"
check "without TCP the port is 0" "$port" 0
kill -KILL "$pid"
wait "$pid" 2>/dev/null
check "a killed one leaves its socket" "$([ -S "$work/s" ] && echo there)" there
start "$relayd" --listen "unix:$work/s"
check "the next one takes its place" "$port" 0
kill -INT "$pid"
ended
check "SIGINT drains and exits 0" "$code" 0

start "$relayd" --listen "unix:$work/s" --drain-delay-ms 10m
kill -TERM "$pid"
until tail -n 1 "$work/log" | grep -q drain.begin || ! kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
kill -TERM "$pid"
ended
check "a second signal exits at once" "$code" 143
check "and its socket is gone" "$([ -e "$work/s" ] || echo gone)" gone

start "$poisoned" --listen 127.0.0.1:0 --watchdog-interval-ms 10 --drain-delay-ms 10m
ended
check "a broken backend exits 70, and does not wait for balancers" "$code" 70

echo "$failed failed"
[ "$failed" -eq 0 ]
