#!/bin/sh
# Installs what requirements/debian.txt lists and this machine lacks. Usage: debian.sh [PACKAGE…], without arguments all
# but those that are `named`.
#
# Nothing is started when nothing is missing. Without root, or where there is no apt-get, it says in one sentence what
# is missing and ends with 1. It never removes a package, and the package lists are fetched anew only if the old ones
# do not do. What is only to be unpacked and cannot be had here is done without: the tests that need it say so. What apt
# says goes to build/setup.log. Python for the test of modules: $PYTHON, else python3.
set -eu
cd "$(dirname "$0")/.."
. requirements/step.sh
unpacked=build/debian
PATH="$PATH:/usr/sbin:/sbin:$PWD/$unpacked/usr/bin:$PWD/$unpacked/usr/sbin"

is_there() {  # SIGN[|SIGN…]
    for sign in $(echo "$1" | tr '|' ' '); do ! is_seen "$sign" || return 0; done
    return 1
}

is_seen() {
    case $1 in
        python:*) "${PYTHON:-python3}" -c "import ${1#python:}" 2>/dev/null ;;
        lib:*) ls "$unpacked"/usr/lib/*/"${1#lib:}" >/dev/null 2>&1 || ldconfig -p | grep -q "${1#lib:} " ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

is_wanted() {  # PACKAGE WANTED…
    [ $# -eq 1 ] && return 0
    package=$1
    shift
    for wanted; do [ "$wanted" = "$package" ] && return 0; done
    return 1
}

install= unpack=
while read -r package signs how; do
    case $package in '' | '#'*) continue ;; esac
    is_wanted "$package" "$@" || continue
    [ "$how" != named ] || [ $# -gt 0 ] || continue
    is_there "$signs" && continue
    if [ "$how" = unpack ]; then unpack="$unpack $package"; else install="$install $package"; fi
done <requirements/debian.txt

[ -n "$install$unpack" ] || exit 0
if ! command -v apt-get >/dev/null || { [ -n "$install" ] && [ "$(id -u)" != 0 ]; }; then
    echo "Missing Debian packages:$install$unpack (as root: make debian)." >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
with_fresh_lists() {  # COMMAND…: once with the package lists as they are, and once more with new ones
    "$@" && return 0
    [ "$(id -u)" = 0 ] || return 1
    apt-get -q -o DPkg::Lock::Timeout=300 update
    "$@"
}

install_packages() {
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends --no-remove "$@"
}

unpack_package() {  # PACKAGE[|PACKAGE…]: the first that there is
    for name in $(echo "$1" | tr '|' ' '); do ! unpack_one "$name" || return 0; done
    return 1
}

unpack_one() {
    mkdir -p "$unpacked/archives"
    rm -f "$unpacked/archives/$1"_*.deb
    (cd "$unpacked/archives" && apt-get -q -o APT::Sandbox::User=root download "$1") || return 1
    dpkg-deb --extract "$unpacked/archives/$1"_*.deb "$unpacked"
}

# shellcheck disable=SC2086  # package names have no spaces
[ -z "$install" ] || step "Installing Debian packages:$install" with_fresh_lists install_packages $install
for package in $unpack; do
    step "Unpacking Debian package $package below build/" with_fresh_lists unpack_package "$package" ||
        echo "It is done without $package." >&2
done
