#!/bin/sh
# Fuzzes each target for a bounded time: fuzz/run.sh [SECONDS [TARGET...]]
#
# Stable Rust is enough: libFuzzer comes with the crate libfuzzer-sys, and the coverage it steers by is an LLVM pass that
# every rustc has. No address sanitizer, which would need a nightly one: only rust/tls has `unsafe`, around BoringSSL, which
# its makers fuzz.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# -eq 0 ] || shift
[ $# -gt 0 ] || set -- $(basename -s .rs fuzz_targets/*.rs) https_record

host=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
export RUSTFLAGS RUST_BACKTRACE=0

for target in "$@"; do
    [ "$target" != https_record ] || continue
    features=
    case $target in tls_*) features=tls ;; esac
    # With --target the flags stay away from build scripts.
    cargo build --quiet --release --target "$host" --features "$features" --bin "$target"
done

for target in "$@"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    set -- "corpus/$target"
    [ ! -d "seeds/$target" ] || set -- "$@" "seeds/$target"
    [ ! -f "dictionaries/$target" ] || set -- "$@" "-dict=dictionaries/$target"
    log="artifacts/$target/log"
    echo "fuzzing $target for $seconds s"
    program="${CARGO_TARGET_DIR:-target}/$host/release/$target"
    # The one parser in Python: atheris brings the same libFuzzer.
    [ "$target" != https_record ] || program="${PYTHON:-python3} https_record.py"
    # shellcheck disable=SC2086 # two words, where it is Python
    if ! $program "$@" -max_total_time="$seconds" -max_len=16384 -timeout=10 \
        -rss_limit_mb=1024 -print_final_stats=1 -artifact_prefix="artifacts/$target/" 2>"$log"; then
        grep -a -A 40 -m 1 -e panicked -e ERROR "$log" >&2 || tail -n 40 "$log" >&2
        echo "$target failed; the input is in fuzz/artifacts/$target, run the program on it to see it again:" >&2
        echo "    $program fuzz/artifacts/$target/FILE" >&2
        exit 1
    fi
    sed -n 's/^Done \([0-9]*\) runs.*/    inputs tried: \1/p; s/^.*\(DONE *cov: [0-9]*\).*/    \1/p' "$log"
done
