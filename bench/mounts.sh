#!/usr/bin/env bash
# What a mounted host directory costs: one large file and many small ones, written and read, held against a bind mount
# in runc on the same disk.
#
#   bench/mounts.sh [RUNTIME...]     qemu where none is named; needs root and a finished `cargo xtask demo`
#
# WORKER (a command) and IMAGE may be set; MIB and FILES are the sizes. Prints seconds, and the load that they were
# measured under.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
read -ra worker <<<"${WORKER:-$target/release/beta9-worker --config target/demo/worker.yaml}"
image=${IMAGE:-busybox} mib=${MIB:-64} files=${FILES:-500}
place=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$place"' EXIT

# Runs in the container; /proc/uptime counts hundredths of a second.
script='
now() { read -r up idle </proc/uptime; echo "${up%.*}${up#*.}"; }
step() { name=$1; shift; from=$(now); "$@" >/dev/null 2>&1 || echo "failed: $name" >&2; echo "$name $(($(now) - from))"; }
make() { mkdir /data/small; i=0; while [ $i -lt $FILES ]; do echo $i >/data/small/$i; i=$((i + 1)); done; }
case $1 in
writing)
    step "write one file of $MIB MiB" dd if=/dev/zero of=/data/big bs=1M count=$MIB conv=fsync
    step "write $FILES files" make ;;
reading)
    step "read one file of $MIB MiB" dd if=/data/big of=/dev/null bs=1M
    step "read $FILES files" sh -c "cat /data/small/*"
    step "look at $FILES files" sh -c "ls -l /data/small"
    step "the same again" sh -c "ls -l /data/small; cat /data/small/*" ;;
esac'

run() {
    local runtime=$1 mode=$2 what=$3
    "${worker[@]}" run --rm --runtime "$runtime" -v "$place/$runtime:/data$mode" -e "MIB=$mib" -e "FILES=$files" \
        "$image" sh -c "$script" sh "$what" |
        while read -r line; do
            printf '%-34s %6d.%02d s\n' "$runtime${mode:+ $mode}: ${line% *}" $((${line##* } / 100)) $((${line##* } % 100))
        done
}

for runtime in runc "${@:-qemu}"; do
    mkdir -p "$place/$runtime"
    run "$runtime" "" writing
    run "$runtime" "" reading
    run "$runtime" ":ro" reading
    run "$runtime" ":ro,cached" reading
    run "$runtime" ":cached" writing
done
echo "load: $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) cores"
