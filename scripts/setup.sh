#!/usr/bin/env bash
# Makes .venv ready: system packages (as root or with sudo), locked Python packages, parallel h5py,
# mpidl itself. Idempotent: each stage leaves a stamp of its inputs, and a second run compares them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${MPIDL_VENV:-.venv}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mpidl/wheels
LOCK=requirements/dev.txt
BUILD_PACKAGES=(gcc libc6-dev libhdf5-openmpi-dev hdf5-tools)
SAMPLE_PACKAGES=(dataset-fashion-mnist)

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

# --- 1. Python and system packages ---
find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            command -v "$candidate"; return
        fi
    done
    return 1
}

missing_packages() {  # prints those of "$@" that dpkg does not know as installed
    local package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            printf '%s ' "$package"
    done
}

apt_install() {  # apt_install PACKAGE...: as root or with password-less sudo; fails without either
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "apt-get install $*"
    "${as_root[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

system_packages() {
    local wanted=("${BUILD_PACKAGES[@]}" "${SAMPLE_PACKAGES[@]}") missing
    find_python >/dev/null || wanted+=(python3 python3-venv)
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: using compiler, MPI and HDF5 of the environment (module load ...)"
        return
    fi
    read -ra missing <<<"$(missing_packages "${wanted[@]}")"
    [ "${#missing[@]}" = 0 ] && return
    apt_install "${missing[@]}" && return
    say "cannot install system packages (not root, no password-less sudo). Missing: ${missing[*]}"
    say "what you lose: libhdf5-openmpi-dev = parallel writing of one shared file (reading one"
    say "  shard per rank still works); gcc = the C kernels (slower NumPy code runs instead);"
    say "  dataset-fashion-mnist = the sample data."
    say "ask an administrator for:  apt-get install ${missing[*]}"
    say "or use the site's modules:  module load python gcc openmpi hdf5-parallel && make setup"
    say "or, in your own environment: module load ... && pip install ."
}

# --- 2. the virtual environment and the locked packages ---
stamp_is() { [ -f "$VENV/.stamp-$1" ] && [ "$(cat "$VENV/.stamp-$1")" = "$2" ]; }
set_stamp() { printf '%s' "$2" >"$VENV/.stamp-$1"; }
digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

locked_packages() {
    local want; want=$(digest "$LOCK")
    stamp_is packages "$want" && return
    local python
    python=$(find_python) ||
        die "no Python >= 3.11 with venv found; set PYTHON=/path/to/python3.11"
    say "creating $VENV with $python"
    "$python" -m venv "$VENV"
    say "installing the packages of $LOCK"
    # Wheels only: a source build of mpi4py can take all the memory of a login node.
    "$VENV/bin/python" -m pip install -qq --require-hashes --only-binary=:all: -r "$LOCK"
    rm -f "$VENV"/.stamp-*
    set_stamp packages "$want"
}

# --- 3. parallel h5py ---
find_parallel_hdf5() {  # prints the prefix of an HDF5 that was built with MPI
    local dir
    if [ -n "${HDF5_DIR:-}" ]; then printf '%s' "$HDF5_DIR"; return; fi
    if command -v dpkg >/dev/null; then
        dir=$(dpkg -L libhdf5-openmpi-dev 2>/dev/null | grep -E '/hdf5/openmpi$' |
            grep -v include | head -n 1 || true)
        if [ -n "$dir" ]; then printf '%s' "$dir"; return; fi
    fi
    if command -v h5pcc >/dev/null; then dirname "$(dirname "$(command -v h5pcc)")"; return; fi
    return 1
}

parallel_h5py() {
    local prefix version library key wheel
    if ! prefix=$(find_parallel_hdf5); then
        stamp_is h5py serial && return
        say "no parallel HDF5 found: keeping serial h5py (one shard per rank still works; see" \
            "'mpidl doctor')"
        set_stamp h5py serial; return
    fi
    version=$(sed -n 's/^h5py==\([0-9.]*\).*/\1/p' "$LOCK")
    library=$(readlink -f "$prefix/libhdf5.so" 2>/dev/null || echo "$prefix")
    key="h5py-$version $prefix $(ls -l "$library" | md5sum | cut -c1-12) $(digest "$LOCK")"
    stamp_is h5py "$key" && return
    wheel="$CACHE/$(printf '%s %s' "$key" "$("$VENV/bin/python" -VV)" | sha256sum | cut -c1-16)"
    if ! compgen -G "$wheel/h5py-*.whl" >/dev/null; then
        say "building h5py $version against $prefix (once, about 2 to 4 minutes; the wheel is" \
            "kept in $wheel)"
        mkdir -p "$wheel"
        # No build isolation: an isolated build would compile mpi4py from source.
        if ! PATH="$PWD/$VENV/bin:$PATH" HDF5_MPI=ON CC=mpicc HDF5_DIR="$prefix" \
            nice "$VENV/bin/python" -m pip wheel -qq --no-build-isolation --no-binary=h5py \
            --no-deps --wheel-dir "$wheel" "h5py==$version" >"$wheel/build.log" 2>&1; then
            tail -n 20 "$wheel/build.log" >&2
            say "building parallel h5py failed (log: $wheel/build.log): keeping serial h5py; see" \
                "'mpidl doctor'"
            return
        fi
    fi
    "$VENV/bin/python" -m pip install -qq --no-deps --force-reinstall --no-index "$wheel"/h5py-*.whl
    set_stamp h5py "$key"
}

# --- 4. mpidl with its C kernels ---
this_package() {
    local want
    want=$( {
        cat pyproject.toml setup.py kernels/cpu/* kernels/python/*
        pwd
        command -v gcc cc || true
    } | sha256sum | cut -d' ' -f1)
    stamp_is mpidl "$want" && return
    say "installing mpidl and compiling its C kernels"
    "$VENV/bin/python" -m pip install -qq --no-build-isolation --no-deps -e .
    set_stamp mpidl "$want"
}

if [ "${1:-}" = slurm ]; then # what the SLURM tests need, on request
    read -ra missing <<<"$(missing_packages slurm-wlm munge)"
    [ "${#missing[@]}" = 0 ] || apt_install "${missing[@]}" ||
        say "cannot install ${missing[*]}: the SLURM tests will be skipped"
    exit 0
fi
system_packages
locked_packages
parallel_h5py
this_package
