#!/bin/sh
# Runs a compiler of BoringSSL's build: through a compiler cache, if there is one, and without debug information, which takes a
# fifth of the time and is stripped in the end. (CMake calls it with the whole command line.)
if command -v ccache >/dev/null; then
    exec ccache "$@" -g0
fi
exec "$@" -g0
