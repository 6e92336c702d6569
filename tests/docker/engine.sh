# A Docker engine of a test's own, without registry, bridge or firewall rules: sourced by scripts.
#
#   engine_start DIR   0: DOCKER_HOST is set; 77: it cannot run here, engine_why says why
#   engine_stop        ends it, by its process id; fine when none runs
#
# Images and build cache stay under DIR from run to run.
# shellcheck shell=bash disable=SC2034

engine_pid=
engine_run=
engine_why=
engine_client=docker

docker() {
  command "$engine_client" "$@"
}

# Of several clients the one that came with the engine: others may want parts that are not there.
engine_choose_client() {
  local server folder folders
  server=$(docker version --format '{{.Server.Version}}')
  IFS=: read -ra folders <<<"$PATH"
  for folder in "${folders[@]}"; do
    if [ -x "$folder/docker" ] &&
      [ "$("$folder/docker" version --format '{{.Client.Version}}')" = "$server" ]; then
      engine_client=$folder/docker
      return
    fi
  done
}

engine_start() {
  local data=$1/data i
  engine_why=
  if [ "$(id -u)" -ne 0 ]; then
    engine_why="a Docker engine needs root"
    return 77
  fi
  for i in dockerd docker; do
    if ! type -P "$i" >/dev/null; then
      engine_why="$i is missing (Debian: docker.io)"
      return 77
    fi
  done
  mkdir -p "$data"
  # Paths of sockets are short.
  engine_run=$(mktemp -d /tmp/relayd-docker.XXXXXX)
  export DOCKER_HOST="unix://$engine_run/docker.sock"
  export DOCKER_CONFIG="$engine_run/config"
  dockerd --data-root "$data" --exec-root "$engine_run/exec" --pidfile "$engine_run/pid" \
    -H "$DOCKER_HOST" --bridge=none --iptables=false --ip6tables=false --ip-forward=false \
    >"$1/dockerd.log" 2>&1 </dev/null &
  engine_pid=$!
  for i in $(seq 600); do
    if docker version >/dev/null 2>&1; then
      engine_choose_client
      return 0
    fi
    kill -0 "$engine_pid" 2>/dev/null || break
    sleep 0.1
  done
  engine_why="dockerd does not start: $(grep -o 'msg="[^"]*"\|^failed.*' "$1/dockerd.log" | tail -n 1)"
  engine_stop
  return 77
}

engine_stop() {
  if [ -n "$engine_pid" ]; then
    kill -TERM "$engine_pid" 2>/dev/null
    wait "$engine_pid"
    engine_pid=
  fi
  if [ -n "$engine_run" ]; then
    # The engine leaves the host's network namespace mounted.
    find "$engine_run/exec/netns" -type f -exec umount {} \; 2>/dev/null
    rm -rf "$engine_run"
    engine_run=
  fi
}
