#!/usr/bin/env bash
# test.sh [lint|unit|mpi|jobs|slurm|peer]...: runs these sections of the tests (default: all but
# peer). Every mpirun has a time limit, so that a hang fails fast. Each section ends with its
# slowest tests; at the end: the time of each section, and whether all passed, which is also the
# exit status. The linters take one core and run beside the section after them.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# = 0 ] && set -- lint unit mpi jobs slurm
# For tests that start MPI without a launcher
for variable in ${MPI_ENV:-}; do export "${variable?}"; done
failed=0 times='' lint=''

note() {  # note NAME BEGIN STATUS: record the time of a section, and failure
    local result=passed
    [ "$3" = 0 ] || { result=FAILED; failed=$((failed + 1)); printf '!!! failed: %s\n' "$1"; }
    times+=$(printf '%6d s  %-7s %s' $((SECONDS - $2)) "$result" "$1")$'\n'
}

section() {  # section NAME COMMAND...: run it, record failure and time
    local begin=$SECONDS
    printf '\n=== %s\n' "$1"
    "${@:2}"
    note "$1" "$begin" $?
    end_lint
}

begin_lint() {  # in the background
    lint_begin=$SECONDS lint_output=$(mktemp)
    make --no-print-directory lint >"$lint_output" 2>&1 &
    lint=$!
}

end_lint() {  # wait for the linters, if they run
    local status
    [ -n "$lint" ] || return 0
    wait "$lint"
    status=$?
    lint=''
    printf '\n=== lint\n'
    cat "$lint_output"
    rm -f "$lint_output"
    note "lint" "$lint_begin" "$status"
}

tests() { python -m pytest -q --durations=8 "$@"; }

mpi_tests() {  # mpi_tests RANKS: rank 0 reports, the others are silent unless they fail
    timeout --signal=TERM --kill-after=20 "${LIMIT:-900}" \
        mpirun -n "$1" scripts/pytest_rank.sh -q --durations=8 -m mpi tests/mpi |
        tr -d '\000' # pytest-mpi prints some
}

for what in "$@"; do
    case $what in
    lint) begin_lint ;;
    unit)
        section "unit tests" \
            tests -m "not mpi and not slurm and not peer" --ignore=tests/jobs tests
        ;;
    mpi)
        for ranks in 1 2 3 4; do section "MPI tests, $ranks rank(s)" mpi_tests "$ranks"; done
        ;;
    jobs) section "whole jobs under mpirun" tests --timeout=400 tests/jobs ;;
    slurm)
        scripts/setup.sh slurm
        section "SLURM" tests -m slurm tests/cluster
        ;;
    peer) section "PyTorch as a reference" tests -m peer tests ;;
    *) echo "usage: $0 [lint|unit|mpi|jobs|slurm|peer]..." >&2; exit 2 ;;
    esac
done

end_lint
printf '\n=== time of each section (%d s)\n%s' "$SECONDS" "$times"
if [ "$failed" != 0 ]; then printf '\n%s section(s) failed\n' "$failed"; exit 1; fi
printf '\nall sections passed\n'
