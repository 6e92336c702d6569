#!/usr/bin/env bash
# Prints the folder of a bare Debian 12, made by debootstrap where it is not there yet. It is kept
# under build/chroot, and is the one that tests/chroot.sh copies: nobody may change it.
#
# Usage: base.sh. The machine's own way to packages is used. Exit code: 77 it cannot be had here, with
# the reason on stderr.
set -u
cd "$(dirname "$0")/../.." || exit 1
suite=bookworm

cannot() {
  echo "$*" >&2
  exit 77
}
[ "$(id -u)" -eq 0 ] || cannot "debootstrap needs root"
command -v debootstrap >/dev/null || cannot "debootstrap is missing"

# The names are those of tests/chroot.sh: a mirror is the machine's own where it runs this release.
release_here=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=""
if [ "$release_here" = "$suite" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' "Created-By: Packages" 2>/dev/null |
    awk -v suite="$suite" '$2 == suite && $1 ~ /^https?:/ {print $1; exit}')
fi
for scheme in http https; do # debootstrap knows the environment's proxies only
  proxy=$(apt-config dump --format '%v%n' "Acquire::$scheme::Proxy" 2>/dev/null | head -n 1)
  if [ -n "$proxy" ] && [ "$proxy" != DIRECT ] && [ -z "$(printenv "${scheme}_proxy")" ]; then
    export "${scheme}_proxy=$proxy"
  fi
done
cache=$PWD/build/chroot
key=$(printf '%s\n' "$suite" "$(dpkg --print-architecture)" "$mirror" | sha256sum | cut -c1-16)
base=$cache/base-$key
mkdir -p "$cache"
# One at a time: who waited finds it done.
exec 9>"$cache/lock"
flock 9
if [ ! -e "$base.done" ]; then
  rm -rf "$base"
  # shellcheck disable=SC2086 # no mirror, no argument
  if ! debootstrap --variant=minbase "$suite" "$base" $mirror >"$cache/debootstrap.log" 2>&1; then
    tail -n 5 "$cache/debootstrap.log" >&2
    rm -rf "$base"
    cannot "debootstrap could not fetch $suite"
  fi
  touch "$base.done"
fi
echo "$base"
