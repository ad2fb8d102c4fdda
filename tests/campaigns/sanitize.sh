#!/usr/bin/env bash
# The tests of the native CPU kernels under sanitizers: addresses and undefined behaviour, then data races.
# Usage: tests/campaigns/sanitize.sh [pytest arguments]; without any, all tests/unit/test_cpu_*.py.
# Needs: gcc with its sanitizers, cmake, ninja, and a python with torch, nanobind and pytest.
# The build that is in use is put back at the end, also after a failure.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.."

python=${PYTHON:-python}
(($#)) || set -- tests/unit/test_cpu_*.py
scratch=$(mktemp -d)
place=kernels/kvgauge_kernels/cpu

put_back() {
    rm -f "$place"/_native*.so
    cp -p "$scratch"/kept/* "$place"/ 2>/dev/null || true
    rm -rf "$scratch"
}
mkdir "$scratch/kept"
cp -p "$place"/_native*.so "$scratch/kept/" 2>/dev/null || true
trap put_back EXIT

run() { # sanitizers, libraries to load first, then pytest's arguments
    local flags="-fsanitize=$1 -fno-omit-frame-pointer -g -O1" libraries=$2
    shift 2
    cmake -S . -B "$scratch/build" -G Ninja -DPython_EXECUTABLE="$(command -v "$python")" \
        -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$flags" >"$scratch/log"
    cmake --build "$scratch/build" >>"$scratch/log" || { cat "$scratch/log"; return 1; }
    rm -f "$place"/_native*.so
    cmake --install "$scratch/build" --prefix kernels >>"$scratch/log"
    LD_PRELOAD=$libraries "$python" -m pytest -q -p no:cacheprovider "$@"
    rm -rf "$scratch/build"
}

library() { gcc -print-file-name="$1"; }

# The interpreter and torch leak by design and reach memory in ways of their own: only errors count.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
echo "sanitize: address, undefined"
run address,undefined "$(library libasan.so):$(library libubsan.so):$(library libstdc++.so.6)" "$@"

# OpenMP's runtime is not instrumented, so its hand-overs look like races: here our own threads run, whose
# number is not torch's; and ThreadSanitizer starts no threads in a forked child.
export TSAN_OPTIONS="halt_on_error=1:suppressions=$PWD/tests/campaigns/sanitize_thread.txt"
echo "sanitize: thread"
export KVGAUGE_OWN_THREADS=1
run thread "$(library libtsan.so):$(library libstdc++.so.6)" -k "not openmp and not torchs and not child" "$@"
echo "sanitize: nothing found"
