#!/usr/bin/env bash
# Runs both commands of the README on a fresh Debian 12: a debootstrapped folder, entered by chroot in
# namespaces of its own, with this commit's files and nothing else.
#
# Usage: tests/chroot.sh [--quick] [--keep]
#   --quick  the release build's tests only, of tests/run.sh
#   --keep   leave the folder for a look
#
# The machine's own way to packages is used: its apt sources (where it runs the same release),
# proxies, keys, pip settings and certificates are copied in. The bare system and the downloaded
# packages are kept under build/chroot. Exit code: 0 passed, 1 failed, 77 it cannot run here.
set -u
cd "$(dirname "$0")/.." || exit 1

suite=bookworm
quick=()
keep=no
for argument in "$@"; do
  case $argument in
  --quick) quick=(--quick) ;;
  --keep) keep=yes ;;
  *)
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
  esac
done

cannot() {
  echo "$*"
  exit 77
}
[ "$(id -u)" -eq 0 ] || cannot "a chroot needs root"
for tool in debootstrap unshare git; do
  command -v "$tool" >/dev/null || cannot "$tool is missing"
done
unshare --mount --propagation private --pid --fork true 2>/dev/null || cannot "no namespaces here"
git rev-parse --verify -q HEAD >/dev/null || cannot "not a git checkout: no commit to take"

# Where this machine gets the release from, as apt sees it; empty: debootstrap's own choice.
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
mkdir -p "$cache/archives/partial"
if [ ! -e "$base.done" ]; then
  echo "== debootstrap"
  rm -rf "$base"
  # shellcheck disable=SC2086 # no mirror, no argument
  if ! debootstrap --variant=minbase "$suite" "$base" $mirror >"$cache/debootstrap.log" 2>&1; then
    tail -n 5 "$cache/debootstrap.log"
    rm -rf "$base"
    cannot "debootstrap could not fetch $suite"
  fi
  touch "$base.done"
fi

work=$(mktemp -d "$cache/run.XXXXXX") || exit 1
fresh=$work/root
clean_up() { # mounts went with their namespace
  if [ "$keep" = yes ]; then
    echo "kept: $fresh"
  else
    rm -rf "$work"
  fi
}
trap clean_up EXIT
trap 'exit 1' INT TERM
cp -a --reflink=auto "$base" "$fresh" || exit 1

copy_in() { # PATH...: what of it exists, to the same place
  local path
  for path in "$@"; do
    if [ -e "$path" ]; then
      mkdir -p "$fresh$(dirname "$path")"
      cp -aL "$path" "$fresh$(dirname "$path")/"
    fi
  done
}
copy_in /etc/resolv.conf /etc/hosts /etc/pip.conf /root/.config/pip /root/.pip \
  /etc/apt/apt.conf /etc/apt/apt.conf.d /etc/apt/auth.conf /etc/apt/auth.conf.d \
  /usr/local/share/ca-certificates
if [ "$release_here" = "$suite" ]; then
  rm -f "$fresh/etc/apt/sources.list"
  copy_in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/trusted.gpg /etc/apt/trusted.gpg.d \
    /etc/apt/keyrings /usr/share/keyrings
fi
# Hooks of the copied settings may empty the archive that is kept between runs.
printf '#clear DPkg::Post-Invoke;\n#clear APT::Update::Post-Invoke;\n' \
  >"$fresh/etc/apt/apt.conf.d/zz-chroot"

settings=(HOME=/root LANG=C.UTF-8 TERM=dumb
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
while IFS= read -r variable; do
  settings+=("$variable")
done < <(env | grep -E '^(PIP_[A-Z_]+|(http|https|ftp|all|no)_proxy|(HTTP|HTTPS|ALL|NO)_PROXY)=' |
  grep -v '^PIP_CERT=')
# A certificate store of the machine's own, under a name that no package of the fresh one writes.
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
if [ -e "$certificates" ]; then
  mkdir -p "$fresh/etc/ssl"
  cp -L "$certificates" "$fresh/etc/ssl/machine.crt"
  for name in PIP_CERT SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; do
    settings+=("$name=/etc/ssl/machine.crt")
  done
fi

mkdir -p "$fresh/root/relayd"
git archive HEAD | tar -xf - -C "$fresh/root/relayd" || exit 1

# enter COMMAND...: in the fresh machine; its processes and mounts end with it.
enter() {
  # shellcheck disable=SC2016 # expanded inside
  unshare --mount --propagation private --pid --fork --kill-child bash -c '
    set -e
    fresh=$1
    shift
    mount -t proc proc "$fresh/proc"
    mount --rbind /dev "$fresh/dev"
    mount --bind "$0" "$fresh/var/cache/apt/archives"
    exec chroot "$fresh" env -i "$@"
  ' "$cache/archives" "$fresh" "${settings[@]}" "$@"
}

code=0
for command in "deploy/quickstart.sh" "tests/run.sh --inside-chroot ${quick[*]+"${quick[*]}"}"; do
  echo "== $command"
  if ! enter bash -c "cd /root/relayd && $command" </dev/null; then
    echo "== failed: $command"
    code=1
  fi
done
exit "$code"
