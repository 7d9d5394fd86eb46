#!/bin/sh
# Names what the build needs and does not find, one line each, with what to install.
python=${PYTHON:-python3}
missing=0

lacks() {
    echo "missing: $1" >&2
    missing=1
}

# at_least HAVE WANT: is version HAVE >= WANT?
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

if ! command -v "$python" >/dev/null; then
    lacks "python3 (3.11 or later): apt install python3 python3-venv"
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    lacks "Python 3.11 or later ($python is $("$python" -V 2>&1)): apt install python3.11, or make PYTHON=/path/to/python3"
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    lacks "Python's venv module: apt install python3-venv"
fi

compiler=${CXX:-c++}
if ! command -v "$compiler" >/dev/null; then
    lacks "a C++ compiler ($compiler): apt install g++"
elif ! echo 'int main() { if constexpr (true) return 0; }' | "$compiler" -std=c++17 -x c++ -fsyntax-only - 2>/dev/null; then
    lacks "a C++17 compiler ($compiler does not know -std=c++17): apt install g++"
fi

command -v git >/dev/null || lacks "git (BoringSSL's build applies patches with it): apt install git"

if ! command -v cargo >/dev/null; then
    lacks "Rust (cargo 1.88 or later): install it with rustup, see https://rustup.rs"
else
    cargo=$(cargo --version | cut -d ' ' -f 2)
    at_least "${cargo%%-*}" 1.88.0 || lacks "Rust 1.88 or later (cargo is $cargo): rustup update stable"
fi

exit $missing
