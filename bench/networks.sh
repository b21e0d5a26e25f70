#!/usr/bin/env bash
# What a network costs a start: containers with loopback alone and containers on the bridge, one after the other.
#
#   bench/networks.sh [RUNS]      after `cargo xtask setup` and a release build; needs root
#
# PROGRAM is the worker to measure, IMAGE an image of busybox. "Network" is from the supervisor's first instruction until the network
# is ready, beside the root file system's preparation; "request to running" is the whole. Prints the median and the 95th
# percentile in ms.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-30}
program=${PROGRAM:-${CARGO_TARGET_DIR:-target}/release/beta9-worker}
image=${IMAGE:-target/cache/images/busybox}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
printf '%s\n' "worker:" "  pools:" "    default:" "      container_runtime: runc" "      runtime_fallback: []" >"$place/worker.yaml"
worker() { "$program" --root "$place/root" --config "$place/worker.yaml" "$@"; }
worker image import -t busybox "$image" >"$place/log" 2>&1
worker serve 2>>"$place/log" &
serve=$!
until worker ps >/dev/null 2>&1; do sleep 0.1; done
for network in none bridge; do worker run --rm --network "$network" busybox true; done
for ((run = 0; run < runs; run++)); do
    for network in none bridge; do
        worker run --network "$network" --name "$network-$run" busybox true
        worker inspect "$network-$run" | python3 -c '
import json, sys
one = json.load(sys.stdin)
one = one[0] if isinstance(one, list) else one
at = {mark["phase"]: mark["at_us"] for mark in one["timeline"]}
print(sys.argv[1], at["network_ready"] - at["supervisor_started"], at["rootfs_ready"] - at["supervisor_started"],
      at["running"] - at["requested"])' "$network" >>"$place/times"
        worker rm "$network-$run" >/dev/null
    done
done
kill "$serve" && wait "$serve" || true
python3 - "$place/times" <<'END'
import sys
rows = [line.split() for line in open(sys.argv[1])]
print(f"{'WHAT':34} {'RUNS':>4} {'P50':>8} {'P95':>8}")
for network in ("none", "bridge"):
    for what, column in (("network", 1), ("root file system", 2), ("request to running", 3)):
        times = sorted(int(row[column]) / 1000 for row in rows if row[0] == network)
        print(f"{network + ': ' + what:34} {len(times):4} {times[len(times) // 2]:8.1f} {times[min(len(times) - 1, len(times) * 95 // 100)]:8.1f}")
END
