#!/usr/bin/env bash
# How long starts take, held against the floor: the runtime program alone, on the same bundle.
#
#   bench/starts.sh [RUNS]        after `cargo xtask demo`; needs root
#
# Runs are interleaved: one of the floor, one of ours, and so on. Prints the median and the 95th percentile in ms.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-30}
program=${CARGO_TARGET_DIR:-target}/release/beta9-worker
worker=("$program" --config target/demo/worker.yaml)
place=$(mktemp -d)
"${worker[@]}" serve 2>"$place/worker.log" &
serve=$!
cleanup() {
    kill "$serve" 2>/dev/null && wait "$serve" || true
    mountpoint -q "$place/rootfs" && umount "$place/rootfs"
    "${worker[@]}" rm -f bench-floor >/dev/null 2>&1 || true
    rm -rf "$place"
}
trap cleanup EXIT
for ((tries = 0; tries < 100; tries++)); do
    grep -q 'worker is serving' "$place/worker.log" && break
    sleep 0.1
done
"${worker[@]}" status >/dev/null

# The bundle of one of our own containers, with a root of the same kind.
id=$("${worker[@]}" run -d --name bench-floor --pool runc debian true)
"${worker[@]}" wait bench-floor >/dev/null
container=target/demo/root/containers/$id
tree=$(sed -n 's/.*"tree":"\([^"]*\)".*/\1/p' "$container/record.json")
mkdir -p "$place"/{bundle,rootfs,upper,work}
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$place/upper,workdir=$place/work" "$place/rootfs"
sed "s|\"path\": *\"[^\"]*/rootfs\"|\"path\":\"$place/rootfs\"|" "$container/bundle/config.json" >"$place/bundle/config.json"

now() { date +%s%N; }
# Appends how long a command took to a file, in microseconds.
timed() {
    local file=$1 start
    shift
    start=$(now)
    "$@" >/dev/null
    echo $((($(now) - start) / 1000)) >>"$place/$file"
}
floor() { runc --root "$place/runc" run --bundle "$place/bundle" bench-floor; }
ours() { "${worker[@]}" run --rm --pool runc debian true; }
# From the request to the running process, as the record has it.
marks() {
    local name=bench-$1-$2 asked running
    "${worker[@]}" run --name "$name" --pool "$1" debian true
    "${worker[@]}" inspect "$name" | tr -d ' \n' >"$place/record"
    asked=$(sed 's/.*"at_us":\([0-9]*\),"phase":"requested".*/\1/' "$place/record")
    running=$(sed 's/.*"at_us":\([0-9]*\),"phase":"running".*/\1/' "$place/record")
    root=$(sed 's/.*"at_us":\([0-9]*\),"phase":"rootfs_ready".*/\1/' "$place/record")
    supervisor=$(sed 's/.*"at_us":\([0-9]*\),"phase":"supervisor_started".*/\1/' "$place/record")
    echo $((running - asked)) >>"$place/$1 request to running"
    echo $((root - supervisor)) >>"$place/$1 rootfs and cgroup"
    "${worker[@]}" rm "$name" >/dev/null
}

for ((run = 0; run < runs; run++)); do
    timed "runc run, whole (floor)" floor
    timed "beta9-worker run --rm, whole" ours
    marks runc "$run"
    marks gvisor "$run"
    ((run % 3)) || marks microvm "$run"
done

printf '%-34s %5s %8s %8s\n' WHAT RUNS P50 P95
for file in "runc run, whole (floor)" "beta9-worker run --rm, whole" "runc request to running" "runc rootfs and cgroup" \
    "gvisor request to running" "gvisor rootfs and cgroup" "microvm request to running" "microvm rootfs and cgroup"; do
    sort -n "$place/$file" | awk -v what="$file" '{ v[NR] = $1 / 1000 }
        END { printf "%-34s %5d %8.1f %8.1f\n", what, NR, v[int((NR + 1) / 2)], v[int(NR * 0.95 + 0.5)] }'
done
"${worker[@]}" run -d --name bench-pss --pool runc debian sleep 30 >"$place/id"
supervisor=$(pgrep -f "supervise .*$(cat "$place/id")" | head -n 1)
awk '/^Pss:/ { printf "%-34s %5d %8.1f MB\n", "supervisor PSS", 1, $2 / 1024 }' "/proc/$supervisor/smaps_rollup"
"${worker[@]}" rm -f bench-pss >/dev/null
