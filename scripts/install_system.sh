#!/usr/bin/env bash
# Install the Debian or Ubuntu packages that some tests need; what is there already is left alone.
#
#   scripts/install_system.sh [slurm] [browser]        default: both; run as root
#
#   slurm     Slurm, munge, and the accounting database without which submitit cannot tell that a task died (make test-slurm)
#   browser   headless Chromium, in which the leaderboard page is tested
set -euo pipefail

declare -A PACKAGES=(
    [slurm]="slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge slurmdbd slurm-wlm-mysql-plugin mariadb-server"
    [browser]="chromium"
)

missing() {
    local package
    for package in "$@"; do
        [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
}

install() {
    # A package must not start its daemon: the tests start their own, as they need it. policy-rc.d is Debian's way to say so.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap "rm -f $policy" EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "$@" >/dev/null
}

wanted=()
for group in "${@:-slurm browser}"; do
    for name in $group; do
        [ -n "${PACKAGES[$name]:-}" ] || { echo "$0: no group '$name'. Known: ${!PACKAGES[*]}" >&2; exit 2; }
        read -ra more <<<"${PACKAGES[$name]}"
        wanted+=("${more[@]}")
    done
done
read -rd '' -a needed < <(missing "${wanted[@]}") || true
if [ ${#needed[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "$0: run as root to install: ${needed[*]}" >&2; exit 2; }
    echo "installing ${needed[*]}"
    install "${needed[@]}"
fi
