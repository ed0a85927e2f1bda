#!/usr/bin/env bash
# Install the Debian packages that the tests use, those that are missing; or say which they are.
# Arguments: packages (by default, one for each program below that is not there).
set -euo pipefail

if [ $# -gt 0 ]; then
    missing=("$@")
else
    missing=()
    # program=package
    browser=chromium
    command -v google-chrome >/dev/null && browser=google-chrome
    for pair in wrk=wrk strace=strace $browser=chromium; do
        PATH=$PATH:/usr/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
fi
[ ${#missing[@]} -gt 0 ] || exit 0

sudo=
if [ "$(id -u)" != 0 ]; then
    sudo="sudo -n"
    if ! sudo -n true 2>/dev/null; then
        sudo=none
    fi
fi
if [ "$sudo" = none ] || ! command -v apt-get >/dev/null; then
    echo "These programs are missing, and the tests that use them are left out: ${missing[*]}" >&2
    echo "(Debian: apt-get install ${missing[*]})" >&2
    # What may be left out on a desk may not be left out where results count.
    [ "${CI:-}" != true ] || exit 1
    exit 0
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq </dev/null
$sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
