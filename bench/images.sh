#!/usr/bin/env bash
# What images cost: taking one in, or pulling it from a registry on loopback, and unpacking it, held against skopeo and umoci;
# and starts by the image's size.
#
#   bench/images.sh [RUNS]        needs root, skopeo, umoci, and docker-registry (`cargo xtask setup` fetches it); compiles what it measures
#   bench/images.sh starts POOL   starts from images of 10 MB, 250 MB and 1 GB; after `cargo xtask demo`
#
# Runs are interleaved: one of the floor, one of ours, and so on. Prints medians in ms, the ratio and the load; how far it
# is goes to stderr.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
place=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
registry=
trap '[[ -z $registry ]] || kill "$registry"; rm -rf "$place"' EXIT
now() { date +%s%N; }
ms() { echo $((($(now) - $1) / 1000000)); }
say() { echo "$(date +%T) $*" >&2; }
load() { echo "load: $(cut -d' ' -f1-3 /proc/loadavg) on $(nproc) cores"; }
median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

# An image of so many MB in three layers: programs and libraries of this machine, as they are.
image() {
    local size=$1 layout=$2 layer found=0 list=$place/list
    find /usr/lib /usr/bin /usr/share -xdev -type f -size -20M -printf '%s %p\n' | LC_ALL=C sort -k2 |
        awk -v most=$((size * 1000000)) '{ sum += $1; if (sum > most) next; sub(/^[0-9]+ /, ""); print }' >"$list"
    umoci init --layout "$layout"
    umoci new --image "$layout:1"
    split -n l/3 "$list" "$place/part."
    for layer in "$place"/part.*; do
        tar --no-recursion --numeric-owner -cf "$place/layer.tar" -T "$layer" 2>/dev/null
        umoci raw add-layer --image "$layout:1" "$place/layer.tar"
        rm "$place/layer.tar" "$layer"
    done
}

if [[ ${1:-} == starts ]]; then
    pool=$2
    worker=("$target/release/beta9-worker" --config target/demo/worker.yaml)
    load
    for size in 10 250 1000; do
        say "making an image of $size MB"
        image "$size" "$place/$size"
        cp target/cache/images/busybox.tar "$place/layer.tar"
        umoci raw add-layer --image "$place/$size:1" "$place/layer.tar"
        "${worker[@]}" image import --tag "bench-$size" "$place/$size" >/dev/null
        "${worker[@]}" run --rm --pool "$pool" "bench-$size" /bin/busybox true
    done
    for ((run = 0; run < 10; run++)); do
        say "start $((run + 1)) of 10 from each"
        for size in 10 250 1000; do
            name=bench-images-$run-$size
            "${worker[@]}" run --name "$name" --pool "$pool" "bench-$size" /bin/busybox true
            "${worker[@]}" inspect "$name" | tr -d ' \n' >"$place/record"
            at() { sed "s/.*\"at_us\":\([0-9]*\),\"phase\":\"$1\".*/\1/" "$place/record"; }
            echo $(($(at rootfs_ready) - $(at supervisor_started))) >>"$place/rootfs.$size"
            "${worker[@]}" rm "$name" >/dev/null
        done
    done
    for size in 10 250 1000; do
        echo "$pool, image of $size MB: root file system ready after $(median <"$place/rootfs.$size") us (median of 10)"
    done
    exit
fi

runs=${1:-5}
say "building"
cargo build --quiet --release --package beta9-image --example unpack
cargo build --quiet --release --package beta9-registry --example pull
say "making an image of 250 MB"
image 250 "$place/image"
echo "image: $(du -sm "$place/image" | cut -f1) MB in 3 layers of gzip"

# Debian's docker-registry on a port of its choice, with the image in it.
cat >"$place/registry.yaml" <<CONFIG
version: 0.1
log: {level: info}
storage:
  filesystem: {rootdirectory: $place/registry}
http:
  addr: 127.0.0.1:0
CONFIG
PATH=$PATH:target/tools/bin OTEL_TRACES_EXPORTER=none docker-registry serve "$place/registry.yaml" >/dev/null 2>"$place/registry.log" &
registry=$!
for ((tries = 0; tries < 100; tries++)); do
    port=$(sed -n 's/.*listening on 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$place/registry.log")
    [[ -z $port ]] || break
    sleep 0.1
done
[[ -n $port ]] || { cat "$place/registry.log" >&2; exit 1; }
remote=127.0.0.1:$port/bench:1
skopeo copy --quiet --dest-tls-verify=false "oci:$place/image:1" "docker://$remote"

# Times one command, after what came before is on the disk.
timed() {
    local into=$1 start
    shift
    sync
    start=$(now)
    "$@"
    ms "$start" >>"$place/$into"
}
import_floor() {
    skopeo copy --quiet "oci:$place/image:1" "oci:$place/copy:1"
    umoci unpack --image "$place/copy:1" "$place/bundle"
}
pull_floor() {
    skopeo copy --quiet --src-tls-verify=false "docker://$remote" "oci:$place/copy:1"
    umoci unpack --image "$place/copy:1" "$place/bundle"
}
unpack() { "$target/release/examples/unpack" "$place/store" "$place/image" "$1" >"$place/said"; }
pull() { "$target/release/examples/pull" "$place/store" "$remote" >"$place/said"; }
parts() { tr '\n' ' ' <"$place/said" >>"$place/parts" && echo >>"$place/parts"; }

load
for ((run = 0; run < runs; run++)); do
    say "run $((run + 1)) of $runs"
    rm -rf "$place"/{copy,bundle,store}
    timed import.floor import_floor
    timed import.tree unpack tree
    parts
    rm -rf "$place"/{copy,bundle,store}
    timed import.block unpack block
    rm -rf "$place/store"
    timed pull.floor pull_floor
    timed pull.tree pull
    parts
done
of() { median <"$place/$1"; }
ratio() { awk -v a="$(of "$1")" -v b="$(of "$2")" 'BEGIN { printf "%.2f", a / b }'; }
echo "medians of $runs:"
echo "skopeo copy and umoci unpack:               $(of import.floor) ms"
echo "import and tree:                            $(of import.tree) ms; ratio $(ratio import.tree import.floor)"
echo "import and block image:                     $(of import.block) ms"
echo "skopeo copy from a registry, umoci unpack:  $(of pull.floor) ms"
echo "pull and tree:                              $(of pull.tree) ms; ratio $(ratio pull.tree pull.floor)"
cat "$place/parts"
