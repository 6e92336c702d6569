#!/usr/bin/env bash
# Installs what relayd is built from, where it is missing: Debian 12 or Ubuntu 24.04, through apt.
# Usage: install-deps.sh [--test] [--cuda] [--image] [--list]
#   --test   also what tests/run.sh needs
#   --cuda   also what nvcc needs beside its toolkit, which is the machine's own
#   --image  also a Docker engine, where there is none, for the image's test
#   --list   print the missing packages and install nothing
set -eu

build_packages=(
  gcc libc6-dev cmake ninja-build pkg-config
  libgrpc-dev libprotobuf-c-dev protobuf-c-compiler libuv1-dev libssl-dev
  libxxhash-dev uthash-dev libinih-dev libcjson-dev
)
# A second compiler with libFuzzer, the pinned formatter, Python for the lints and the standard
# client, a fresh machine in a folder, a clock that jumps.
test_packages=(
  g++ clang-14 libclang-rt-14-dev llvm-14 clang-format-14
  python3 python3-venv ca-certificates
  debootstrap debian-archive-keyring util-linux libfaketime
)

packages=("${build_packages[@]}")
list=no
for argument in "$@"; do
  case $argument in
  --test) packages+=("${test_packages[@]}") ;;
  --cuda) packages+=(g++) ;;
  --image) command -v dockerd >/dev/null || packages+=(docker.io) ;;
  --list) list=yes ;;
  *)
    sed -n '2,7s/^# //p' "$0"
    exit 64
    ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install-deps: no apt here. relayd needs what these Debian packages hold: ${packages[*]}" >&2
  exit 1
fi

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
for package in "${packages[@]}"; do
  is_installed "$package" || missing+=("$package")
done
# pkg-config is a name that pkgconf provides too.
if command -v pkg-config >/dev/null; then
  kept=()
  for package in "${missing[@]+"${missing[@]}"}"; do
    [ "$package" = pkg-config ] || kept+=("$package")
  done
  missing=("${kept[@]+"${kept[@]}"}")
fi

if [ "${#missing[@]}" -eq 0 ]; then
  echo "install-deps: nothing is missing"
  exit 0
fi
if [ "$list" = yes ]; then
  printf '%s\n' "${missing[@]}"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install-deps: as root, run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "install-deps: installing ${missing[*]}"
"${as_root[@]+"${as_root[@]}"}" env DEBIAN_FRONTEND=noninteractive apt-get update -q
"${as_root[@]+"${as_root[@]}"}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install -q -y --no-install-recommends "${missing[@]}"
