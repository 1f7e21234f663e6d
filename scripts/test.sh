#!/usr/bin/env bash
# test.sh [unit|mpi|slurm|peer]: runs the tests; without an argument unit, MPI and SLURM tests one after another.
# Every mpirun has a time limit, so that a hang fails fast. The last line sums up, and the exit status is that of the tests.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
what=${1:-all}
failed=0

section() {  # section NAME COMMAND...: run it, remember a failure, go on
    printf '\n=== %s\n' "$1"
    if "${@:2}"; then return; fi
    printf '!!! failed: %s\n' "$1"
    failed=$((failed + 1))
}

mpi_tests() {  # mpi_tests RANKS: rank 0 reports, the others are silent unless they fail
    # shellcheck disable=SC2086
    env ${MPI_ENV:-} timeout --signal=TERM --kill-after=20 "${LIMIT:-900}" \
        mpirun -n "$1" scripts/pytest_rank.sh -q -m mpi tests/mpi | tr -d '\000' # pytest-mpi prints some
}

case $what in all | unit) section "unit tests" python -m pytest -q -m "not mpi and not slurm and not peer" --ignore=tests/jobs tests ;; esac
case $what in all | mpi)
    for ranks in 1 2 3 4; do section "MPI tests, $ranks rank(s)" mpi_tests "$ranks"; done
    section "whole jobs under mpirun" python -m pytest -q --timeout=400 tests/jobs ;;
esac
case $what in all | slurm)
    scripts/setup.sh slurm
    section "SLURM" python -m pytest -q -m slurm tests/cluster
    ;;
esac
case $what in peer) section "PyTorch as a reference" python -m pytest -q -m peer tests ;; esac

if [ "$failed" != 0 ]; then printf '\n%s section(s) failed\n' "$failed"; exit 1; fi
printf '\nall sections passed\n'
