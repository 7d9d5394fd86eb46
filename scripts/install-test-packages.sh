#!/bin/sh
# System packages that the tests use beyond the build's own needs (Debian, Ubuntu). Without them the tests that need them are skipped
# with a reason on a user's machine, and fail in CI.
set -eu

wanted=""
need() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || wanted="$wanted $2"
}
need curl curl
need git git
need openssl openssl
need tmux tmux
need c++ g++
need named bind9
need valgrind valgrind
need strace strace
need certutil libnss3-tools
need npm npm
# The browsers take 12 to 15 seconds each. Ubuntu has neither as a package: there their tests are skipped.
if grep -qx 'ID=debian' /etc/os-release; then
    need chromium chromium
    need firefox-esr firefox-esr
fi
# Debian's python3 comes without ensurepip.
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || wanted="$wanted python3-venv"

[ -n "$wanted" ] || exit 0

as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list of packages
$as_root apt-get install -qq --no-install-recommends $wanted
