#!/bin/sh
# One step of the set-up: a line says what is done, and what that prints goes to build/setup.log; if it fails, the end of
# that is shown. Usage: step.sh SENTENCE COMMAND…, in the checkout; or read by a script, which then calls `step` alike.
step() {
    echo "$1"
    mkdir -p build
    printf '\n%s %s\n' "$(date -u '+%F %T')" "$1" >>build/setup.log
    shift
    "$@" >>build/setup.log 2>&1 </dev/null && return 0
    code=$?
    echo "That failed. The end of build/setup.log:" >&2
    tail -n 20 build/setup.log >&2
    return "$code"
}

case $0 in *step.sh) step "$@" ;; esac
