#!/usr/bin/env bash
# Run the tests that need containers, against a Docker daemon found or started here.
#   scripts/test-docker.sh [pytest's arguments]   default: tests/sandboxes
#   scripts/test-docker.sh --keep                 only get daemon and image ready, and leave them
# A daemon that answers (DOCKER_HOST, the usual socket, one kept) is used; the images made in it for
# the tests go again. Else one is started in a folder of its own, and goes with everything it made;
# that takes root and control groups. Another run meanwhile waits, as that daemon is not its own.
# Where no daemon can be had the script fails, unless FLEET_TEST_DOCKER=optional.
set -euo pipefail
cd "$(dirname "$0")/.."
room=${FLEET_TEST_DOCKERD:-/tmp/fleet-dockerd}  # short: a socket's path has 107 bytes at most
groups=fleet-dockerd-$$  # the daemon's folder in each hierarchy of control groups
tar=${FLEET_TEST_CACHE:-/var/tmp}/fleet-base-bookworm.tar
image=fleet-test/base:bookworm
keep=
if [ "${1:-}" = --keep ]; then keep=1; shift; fi

say() { echo "test-docker: $*" >&2; }
cannot() {
  say "no Docker daemon: $*"
  [ "${FLEET_TEST_DOCKER:-}" = optional ] && exit 0
  exit 1
}
answers() { timeout 10 docker -H "$1" version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# ------------------------------------------------------------------ what has to be installed
install_missing() {
  local need=() command package
  for command in "$@"; do
    package=$command
    case $command in docker | dockerd) package=docker.io ;; ip) package=iproute2 ;; esac
    command -v "$command" >/dev/null || need+=("$package")
  done
  [ ${#need[@]} -gt 0 ] || return 0
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null \
    || cannot "missing; sudo apt-get install -y --no-install-recommends ${need[*]}"
  say "installing ${need[*]}"
  apt-get update -qq
  # docker.io brings a service, which must not start: the tests have a daemon of their own.
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; made=1; fi
  local rc=0
  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${need[@]}" \
    >/dev/null || rc=$?
  [ -z "$made" ] || rm -f $policy
  return $rc
}

# ------------------------------------------------------------------ a daemon of our own
# What the kernel keeps beyond the daemon's end, so that it can be put back.
network_before() {
  cat /proc/sys/net/ipv4/ip_forward
  iptables -S FORWARD | head -1
  { iptables -S; iptables -t nat -S; } | grep -c DOCKER || :
}

start_daemon() {
  [ "$(id -u)" = 0 ] || cannot "only root can start one"
  grep -q ' /sys/fs/cgroup.* cgroup' /proc/mounts || cannot "no control groups are mounted"
  iptables -S FORWARD >/dev/null || cannot "iptables does not work here"
  mkdir -p "$room"
  network_before > "$room/network-before"
  ending=stop_daemon
  # setsid: a Ctrl-C is for the tests, which the daemon must outlive to be cleaned up after.
  setsid dockerd -H "unix://$room/s" --data-root "$room/data" --exec-root "$room/run" \
    --pidfile "$room/pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$groups" \
    >"$room/log" 2>&1 </dev/null 9>&- &
  local deadline=$((SECONDS + 30)) daemon=$!
  until answers "unix://$room/s"; do
    if ! kill -0 $daemon 2>/dev/null || [ $SECONDS -gt $deadline ]; then
      tail -5 "$room/log" >&2
      cannot "dockerd did not start; its last words are above"
    fi
    sleep 0.2
  done
}

stop_daemon() {
  set +e  # whatever cannot be removed, the rest is
  local pid mount socket=unix://$room/s
  if answers "$socket"; then
    # Everything in it is ours: its data lie in our folder.
    docker -H "$socket" ps -aq | xargs -r docker -H "$socket" rm -f >/dev/null
    docker -H "$socket" network prune -f >/dev/null
  fi
  if pid=$(cat "$room/pid" 2>/dev/null) && grep -q dockerd "/proc/$pid/comm" 2>/dev/null; then
    kill "$pid"
    timeout 30 tail --pid="$pid" -f /dev/null || kill -9 "$pid"
  fi
  forget_network
  grep -o " $room/[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount "$mount"; done
  # The daemon's control groups, empty now; those of other daemons have other names.
  find /sys/fs/cgroup -depth -type d -path "*/$groups*" -exec rmdir {} + 2>/dev/null
  rm -rf "$room"
}

# The daemon leaves its bridge, its firewall chains and forwarding behind, also after SIGTERM.
forget_network() {
  local forward policy others table
  { read -r forward; read -r policy; read -r others; } <"$room/network-before"
  [ "$others" = 0 ] || return 0  # another daemon's chains were there before: they are shared
  ip link del docker0 2>/dev/null || :
  for table in filter nat; do
    iptables -t $table -S | grep -E '^-A .*(DOCKER|docker0)' | while read -r _ rule; do
      # shellcheck disable=SC2086 - these are the words of one rule
      iptables -t $table -D $rule
    done
    iptables -t $table -S | sed -n 's/^-N \(DOCKER.*\)/\1/p' | while read -r rule; do
      iptables -t $table -F "$rule"
      iptables -t $table -X "$rule"
    done
  done
  # shellcheck disable=SC2086
  iptables $policy
  echo "$forward" > /proc/sys/net/ipv4/ip_forward
}

# ------------------------------------------------------------------ the image
base_image() {
  docker image inspect "$image" >/dev/null 2>&1 && return
  if [ ! -s "$tar" ]; then
    install_missing mmdebstrap
    say "making the base image, about a minute, once: $tar"
    mkdir -p "$(dirname "$tar")"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv \
      --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' bookworm "$tar.$$.tar"
    mv "$tar.$$.tar" "$tar"
  fi
  docker import -c 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    "$tar" "$image" >/dev/null
}

images() { docker images --format '{{.Repository}}:{{.Tag}}' 'fleet-test/*' | sort; }
use_daemon() {
  export DOCKER_HOST=$1
  before=$(images)  # first: with nothing known from before, all would be forgotten
  ending=forget_images
}
forget_images() {
  comm -13 <(echo "$before") <(images) | xargs -r docker rmi --force >/dev/null || :
}

# ------------------------------------------------------------------ which daemon, then the tests
install_missing docker
# An empty folder: nobody's credentials, no plug-ins that another machine has not.
DOCKER_CONFIG=$(mktemp -d)
ending=:
trap '$ending; rm -rf "$DOCKER_CONFIG"' EXIT
trap 'exit 130' INT TERM
export DOCKER_CONFIG FLEET_TEST_IMAGE=$image
own=unix://$room/s
if [ -n "${DOCKER_HOST:-}" ]; then
  # One that does not answer is a mistake to be told, not a wish for another.
  answers "$DOCKER_HOST" || cannot "nothing answers at DOCKER_HOST=$DOCKER_HOST"
  use_daemon "$DOCKER_HOST"
elif answers unix:///var/run/docker.sock; then
  use_daemon unix:///var/run/docker.sock
else
  # Before asking: the daemon of another run answers as well, and goes when that run ends.
  exec 9>"$room.lock"
  flock --wait 1800 9 || cannot "another run holds $room.lock"
  if answers "$own"; then
    use_daemon "$own"  # kept
  else
    install_missing dockerd iptables ip
    export DOCKER_HOST=$own
    start_daemon
  fi
fi
base_image
if [ -n "$keep" ]; then
  ending=:
  [ ! -d "$room" ] || echo "$DOCKER_HOST" >"$room/READY"
  echo "export DOCKER_HOST=$DOCKER_HOST FLEET_TEST_IMAGE=$image"
  exit 0
fi
[ $# -gt 0 ] || set -- tests/sandboxes
.venv/bin/pytest -m docker "$@"
