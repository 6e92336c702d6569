#!/usr/bin/env bash
# The Dockerfile's image, built and run by a real engine: the quickstart's demo from outside against
# a container that may do nothing it need not, its health, and a clean stop.
#
# Usage: image_test.sh BUILD_DIR [--cuda]    (relayctl of that build is the client)
# No registry is asked: the base image is a debootstrapped Debian under the name that the Dockerfile
# wants. Packages come from where this machine gets them. With --cuda the image is the one with the cuda
# backend, its base has this machine's CUDA toolkit too, and it computes on the CPU where there is no
# GPU; that takes some minutes more and is not part of the usual tests. Exit code: 77 it cannot run here.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=$(realpath "$1")
cuda=${2:-}
toolkit=/usr/local/cuda
cache=$PWD/build/docker
mkdir -p "$cache"
# shellcheck source=tests/docker/engine.sh
. tests/docker/engine.sh

work=$(mktemp -d /tmp/relayd-image.XXXXXX)
container=relayd-image-test
leave() {
  if [ -n "$engine_pid" ]; then
    docker rm -f "$container" >/dev/null 2>&1
  fi
  engine_stop
  rm -rf "$work"
}
trap leave EXIT
trap 'exit 130' INT TERM

fail() {
  echo "FAIL $*"
  docker logs "$container" 2>&1 | tail -n 20
  exit 1
}
cannot() {
  echo "skipped: $*"
  exit 77
}
seconds() { # NAME SINCE
  echo "     $1: $(($(date +%s) - $2)) s"
}

engine_start "$cache" || cannot "$engine_why"
base=$(tests/docker/base.sh 2>"$work/why") || cannot "$(tail -n 1 "$work/why")"

# ---- build ----

arguments=()
base_name=$(sed -n 's/^ARG BASE=//p' Dockerfile)
began=$(date +%s)
if [ "$(docker image inspect -f '{{index .Config.Labels "base"}}' "$base_name" 2>/dev/null)" != "$base" ]; then
  tar -C "$base" -c . | docker import -c 'CMD ["bash"]' -c "LABEL base=$base" - "$base_name" \
    >/dev/null || fail "the base cannot be imported"
fi
if [ "$cuda" = --cuda ]; then
  [ -x "$toolkit/bin/nvcc" ] || cannot "there is no $toolkit/bin/nvcc"
  # Of its libraries what nvcc links with, a thirtieth of them.
  mkdir -p "$work/toolkit/lib64"
  cp -rL "$toolkit"/{bin,nvvm,include} "$work/toolkit/" &&
    cp -rL "$toolkit/lib64/"libcuda{rt,devrt}* "$toolkit/lib64/stubs" "$work/toolkit/lib64/" ||
    fail "the toolkit cannot be copied"
  printf '%s\n' "FROM $base_name" "COPY . $toolkit" "ENV PATH=$toolkit/bin:\$PATH" >"$work/Dockerfile"
  DOCKER_BUILDKIT=1 docker build -q -t relayd-toolkit:test -f "$work/Dockerfile" "$work/toolkit" \
    >/dev/null || fail "no base with the toolkit"
  arguments+=(--build-arg PRESET=cuda --build-arg BASE=relayd-toolkit:test)
fi
seconds "base image" "$began"

# Proxies as apt and the environment here have them; they do not stay in the image.
for scheme in http https; do
  proxy=$(apt-config dump --format '%v%n' "Acquire::$scheme::Proxy" 2>/dev/null | head -n 1)
  if [ -z "$proxy" ] || [ "$proxy" = DIRECT ]; then
    proxy=$(printenv "${scheme}_proxy")
  fi
  if [ -n "$proxy" ]; then
    arguments+=(--build-arg "${scheme}_proxy=$proxy")
  fi
done
began=$(date +%s)
if ! DOCKER_BUILDKIT=1 docker build --progress=plain --network=host -t relayd:test \
  "${arguments[@]+"${arguments[@]}"}" . >"$cache/build.log" 2>&1; then
  tail -n 30 "$cache/build.log"
  if grep -q 'Temporary failure resolving\|Could not connect\|Failed to fetch' "$cache/build.log"; then
    cannot "the build cannot reach the package archive"
  fi
  fail "the image does not build"
fi
seconds "docker build" "$began"
echo "     image: $(($(docker image inspect -f '{{.Size}}' relayd:test) / 1000000)) MB, of them base: \
$(($(docker image inspect -f '{{.Size}}' "$base_name") / 1000000)) MB"
echo "ok   the image builds"
if [ "$cuda" = --cuda ]; then
  if [ ! -e /dev/nvidia0 ]; then # by name it wants the device, and says so
    ! docker run --rm --network=none relayd:test --backend=cuda:0 >"$work/out" 2>&1 ||
      fail "it starts on a device that is not there"
    sed 's/^/     /' "$work/out" | tail -n 1
    echo "ok   it says that there is no GPU"
  fi
fi

# ---- run ----

hardened=(--read-only --cap-drop=ALL --security-opt no-new-privileges --memory 512m --pids-limit 64
  --health-interval 1s)
state() {
  docker inspect -f "{{$1}}" "$container"
}
wait_healthy() {
  local i
  for i in $(seq 300); do
    [ "$(state .State.Health.Status)" != healthy ] || return 0
    [ "$(state .State.Running)" = true ] || return 1
    sleep 0.2
  done
  return 1
}
# Drained, not killed: by its own exit code.
stop() {
  docker stop -t 60 "$container" >/dev/null || fail "docker stop"
  [ "$(state .State.ExitCode)" = 0 ] || fail "exit code $(state .State.ExitCode) after docker stop"
  [ "$(state .State.OOMKilled)" = false ] || fail "it ran out of memory"
  docker rm "$container" >/dev/null
}

# As it is, on its own: no network but loopback, nothing to write to.
docker run -d --name "$container" --network=none "${hardened[@]}" relayd:test >/dev/null ||
  fail "docker run"
wait_healthy || fail "it does not become healthy: $(state .State.Health.Status)"
[ "$(docker exec "$container" id -u)" = 10001 ] || fail "it runs as user $(docker exec "$container" id -u)"
! docker exec "$container" touch /tmp/x 2>/dev/null || fail "its root can be written"
[ "$(docker exec "$container" cat /proc/1/comm)" = relayd ] || fail "PID 1 is not relayd"
! docker exec "$container" relayctl health --target 127.0.0.1:1 >/dev/null 2>&1 ||
  fail "its health check says yes to anything"
stop
echo "ok   it runs unprivileged, becomes healthy and drains"

# The demo from outside, over a socket directory that is shared and over the host's network.
mkdir "$work/run"
chown 10001:10001 "$work/run"
docker run -d --name "$container" --network=host "${hardened[@]}" --tmpfs /tmp \
  -v "$work/run:/run/relayd" -e RELAYD_LISTEN=127.0.0.1:0,unix:/run/relayd/relayd.sock \
  -e RELAY_TARGET=unix:///run/relayd/relayd.sock relayd:test --log-format json >/dev/null ||
  fail "docker run with a socket directory"
wait_healthy || fail "it does not become healthy: $(state .State.Health.Status)"
port=$(docker logs "$container" 2>&1 | grep -o 'address=127.0.0.1:0 port=[0-9]*' | grep -o '[0-9]*$')
[ -n "$port" ] || fail "it does not say its port"
golden=${RELAY_GOLDEN_DIR:-tests/golden}
demo() { # TARGET ID
  local relayctl=("$build/client/relayctl")
  RELAY_TARGET=$1 "${relayctl[@]}" register "$golden/gemma3-270m-prompt.safetensors" \
    --model-key image --id "$2" --text &&
    RELAY_TARGET=$1 "${relayctl[@]}" attend "$golden/gemma3-270m-steps.safetensors" \
      --model-key image --id "$2" --text &&
    RELAY_TARGET=$1 "${relayctl[@]}" unregister "$2" --model-key image >/dev/null
}
for target in "unix://$work/run/relayd.sock" "127.0.0.1:$port"; do
  if ! demo "$target" demo/prompt >"$work/out" 2>&1 || ! grep -q '^match: ' "$work/out"; then
    cat "$work/out"
    fail "the demo over ${target%%:*}"
  fi
  sed 's/^/     /' "$work/out"
done
docker stats --no-stream --format '     memory: {{.MemUsage}}, processes and threads: {{.PIDs}}' "$container"
stop
[ ! -e "$work/run/relayd.sock" ] || fail "it left its socket"
echo "ok   the demo from outside"
