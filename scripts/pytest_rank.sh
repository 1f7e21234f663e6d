#!/usr/bin/env bash
# Runs pytest on one rank of an MPI job: rank 0 reports; the others write to a file that is shown
# only if they fail.
rank=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-0}}
export MPI_ENV=
if [ "$rank" = 0 ]; then exec python -m pytest --color=no --with-mpi "$@"; fi
log=$(mktemp)
python -m pytest --color=no --with-mpi "$@" >"$log" 2>&1
status=$?
[ "$status" = 0 ] || { printf -- '--- rank %s\n' "$rank"; cat "$log"; }
rm -f "$log"
exit "$status"
