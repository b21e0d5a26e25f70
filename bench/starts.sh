#!/usr/bin/env bash
# How long starts take, held against the floor: the runtime program or the engine alone.
#
#   bench/starts.sh [RUNS]        after `cargo xtask demo`; needs root
#
# "First byte" is what a user sees: from the command to the first byte of the container's output. Its floors are
# `runc run` and `runsc run` of the same bundle, and for microVMs QEMU booting the same kernel and initramfs, without any
# of our devices, until the kernel has nothing left to do but to start an init. "Request to running" is our own record.
# microVMs are measured with Debian's kernel (stock), and with ours (own) where `cargo xtask kernel` has built it.
# Runs are interleaved: one of the floor, one of ours, and so on. Prints the median and the 95th percentile in ms.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=${1:-30}
target=${CARGO_TARGET_DIR:-target}
program=$target/release/beta9-worker
place=$(mktemp -d)
worker=("$program" --config "$place/worker.yaml")
kernels=(stock)
[[ ! -e target/kernel/vmlinux ]] || kernels=(own stock)
configure() {
    local here=$PWD kernel
    printf '%s\n' "worker:" "  root: $here/target/demo/root" "  default_pool: runc" "  pools:" \
        "    runc: {container_runtime: runc, runtime_fallback: []}" \
        "    gvisor: {container_runtime: gvisor, runtime_fallback: []}"
    for kernel in "${kernels[@]}"; do
        printf '    %s\n' "$kernel:" "  container_runtime: microvm" "  runtime_fallback: []" "  container_runtime_config:" \
            "    firecracker_kernel: $here/target/guest/$kernel/vmlinux" "    firecracker_root: $here/target/demo/vms" \
            "    qemu_kernel: $here/target/guest/$kernel/vmlinux" "    qemu_root: $here/target/demo/vms" \
            "    vhost_device_vsock_bin: $here/target/tools/bin/vhost-device-vsock"
    done
}
for kernel in "${kernels[@]}"; do
    cargo xtask guest --kernel "$kernel" --out "target/guest/$kernel"
done
configure >"$place/worker.yaml"
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
id=$("${worker[@]}" run -d --name bench-floor --pool runc debian echo ready)
"${worker[@]}" wait bench-floor >/dev/null
container=target/demo/root/containers/$id
tree=$(sed -n 's/.*"tree":"\([^"]*\)".*/\1/p' "$container/record.json")
mkdir -p "$place"/{bundle,rootfs,upper,work}
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$place/upper,workdir=$place/work" "$place/rootfs"
sed "s|\"path\": *\"[^\"]*/rootfs\"|\"path\":\"$place/rootfs\"|" "$container/bundle/config.json" >"$place/bundle/config.json"
platform=ptrace
[[ $(runsc --platform=systrap help 2>&1) == *"unknown platform"* ]] || platform=systrap
khz=$(awk -F: '/^cpu MHz/ { printf "%d", $2 * 1000; exit }' /proc/cpuinfo)

now() { date +%s%N; }
# Appends how long a command took to its first line, or to its end, to a file, in microseconds.
first_line() {
    local file=$1 start
    shift
    start=$(now)
    "$@" 2>/dev/null | {
        read -r
        echo $((($(now) - start) / 1000)) >>"$place/$file"
        cat >/dev/null
    }
}
timed() {
    local file=$1 start
    shift
    start=$(now)
    "$@" >/dev/null
    echo $((($(now) - start) / 1000)) >>"$place/$file"
}
runc_floor() { runc --root "$place/runc" run --bundle "$place/bundle" bench-floor; }
runsc_floor() {
    runsc --root "$place/runsc" --platform="$platform" --network=none run --bundle "$place/bundle" bench-floor
}
# A kernel without an init says so at once and ends the machine.
qemu_floor() {
    local guest=target/guest/$1
    qemu-system-x86_64 -no-user-config -nodefaults -M microvm,memory-backend=mem -accel tcg,thread=multi,tb-size=256 \
        -cpu max -smp 1 -m 512 -object memory-backend-memfd,id=mem,size=512M,share=on -kernel "$guest/vmlinux" \
        -initrd "$guest/initrd.img" -append "console=ttyS0 quiet loglevel=3 reboot=t panic=-1 \
random.trust_cpu=on cryptomgr.notests=1 rcupdate.rcu_expedited=1 noreplace-smp tsc_early_khz=$khz tsc=reliable \
rdinit=/nonexistent" -display none -serial stdio -no-reboot </dev/null
}
ours() { "${worker[@]}" run --rm --pool "$1" debian echo ready; }
# From the request to the running process, as the record has it.
marks() {
    local name=bench-$1-$2 asked running root supervisor
    "${worker[@]}" run --name "$name" --pool "$1" debian true
    "${worker[@]}" inspect "$name" | tr -d ' \n' >"$place/record"
    asked=$(sed 's/.*"at_us":\([0-9]*\),"phase":"requested".*/\1/' "$place/record")
    running=$(sed 's/.*"at_us":\([0-9]*\),"phase":"running".*/\1/' "$place/record")
    root=$(sed 's/.*"at_us":\([0-9]*\),"phase":"rootfs_ready".*/\1/' "$place/record")
    supervisor=$(sed 's/.*"at_us":\([0-9]*\),"phase":"supervisor_started".*/\1/' "$place/record")
    echo $((running - asked)) >>"$place/$1: request to running"
    echo $((root - supervisor)) >>"$place/$1: rootfs and cgroup"
    "${worker[@]}" rm "$name" >/dev/null
}

for ((run = 0; run < runs; run++)); do
    first_line "runc run: first byte (floor)" runc_floor
    first_line "runc: first byte" ours runc
    timed "runc run: whole (floor)" runc_floor
    timed "runc: whole" ours runc
    marks runc "$run"
    first_line "runsc run: first byte (floor)" runsc_floor
    first_line "gvisor: first byte" ours gvisor
    marks gvisor "$run"
    if ! ((run % 3)); then
        for kernel in "${kernels[@]}"; do
            first_line "qemu alone, $kernel: kernel up (floor)" qemu_floor "$kernel"
            first_line "microvm, $kernel: first byte" ours "$kernel"
            marks "$kernel" "$run"
        done
    fi
done

vms=()
for kernel in "${kernels[@]}"; do
    vms+=("qemu alone, $kernel: kernel up (floor)" "microvm, $kernel: first byte" "$kernel: request to running" \
        "$kernel: rootfs and cgroup")
done
printf '%-38s %5s %8s %8s\n' WHAT RUNS P50 P95
for file in "runc run: first byte (floor)" "runc: first byte" "runc run: whole (floor)" "runc: whole" \
    "runc: request to running" "runc: rootfs and cgroup" "runsc run: first byte (floor)" "gvisor: first byte" \
    "gvisor: request to running" "gvisor: rootfs and cgroup" "${vms[@]}"; do
    sort -n "$place/$file" | awk -v what="$file" '{ v[NR] = $1 / 1000 }
        END { printf "%-38s %5d %8.1f %8.1f\n", what, NR, v[int((NR + 1) / 2)], v[int(NR * 0.95 + 0.5)] }'
done
"${worker[@]}" run -d --name bench-pss --pool runc debian sleep 30 >"$place/id"
supervisor=$(pgrep -f "supervise .*$(cat "$place/id")" | head -n 1)
awk '/^Pss:/ { printf "%-38s %5d %8.1f MB\n", "supervisor PSS", 1, $2 / 1024 }' "/proc/$supervisor/smaps_rollup"
"${worker[@]}" rm -f bench-pss >/dev/null
