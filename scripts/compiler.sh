#!/bin/sh
# Runs a compiler of BoringSSL's build: through a compiler cache, if there is one, and without debug information, which takes a
# fifth of the time and is stripped in the end. (CMake calls it with the whole command line.)
for cache in ccache sccache; do
    if command -v "$cache" >/dev/null; then
        exec "$cache" "$@" -g0
    fi
done
exec "$@" -g0
