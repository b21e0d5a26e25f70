#!/usr/bin/env bash
# What a mounted host directory costs: one large file and many small ones, written and read, held against a bind mount
# in runc on the same disk.
#
#   bench/mounts.sh [POOL...]     microvm where none is named; needs root and a finished `cargo xtask demo`
#
# WORKER (a command) and IMAGE may be set; MIB and FILES are the sizes. Prints seconds, and the load that they were
# measured under.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
read -ra worker <<<"${WORKER:-$target/release/beta9-worker --config target/demo/worker.yaml}"
image=${IMAGE:-debian} mib=${MIB:-64} files=${FILES:-500}
place=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$place"' EXIT

run() {
    local pool=$1 mode=$2 what=$3
    "${worker[@]}" run --rm --pool "$pool" -v "$PWD/bench:/bench:ro" -v "$place/$pool:/data$mode" -e "MIB=$mib" -e "FILES=$files" \
        "$image" sh /bench/mounts.steps.sh "$what" | show "$pool${mode:+ $mode}"
}

show() {
    while read -r line; do
        printf '%-40s %6d.%02d s\n' "$1: ${line% *}" $((${line##* } / 100)) $((${line##* } % 100))
    done
}

for pool in runc "${@:-microvm}"; do
    mkdir -p "$place/$pool"
    run "$pool" "" writing
    run "$pool" "" reading
    run "$pool" ":cached" reading
done
echo "load: $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) cores"
