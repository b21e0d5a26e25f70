#!/bin/busybox sh
# PID 1 of the nested machine until its root is in place: loads modules, mounts the host's root read-only, lays a
# writable layer over it and hands over to `job`, which runs there.
bb=/bin/busybox
fail() { echo "nested: $*"; $bb reboot -f; }

$bb mount -t proc proc /proc || fail "cannot mount /proc"
$bb mount -t devtmpfs dev /dev || fail "cannot mount /dev"
while read -r module; do
    $bb insmod "/modules/$module" || fail "cannot load $module"
done < /modules/order

$bb mount -t virtiofs -o ro hostroot /host || fail "cannot mount the host's root"
$bb mount -t ext4 -o noatime /dev/vda /scratch || fail "cannot mount the scratch disk"
$bb mkdir /scratch/upper /scratch/work
$bb mount -t overlay -o lowerdir=/host,upperdir=/scratch/upper,workdir=/scratch/work overlay /newroot ||
    fail "cannot lay a writable layer over the host's root"

new=/newroot
$bb mount --move /dev $new/dev
$bb mount --move /proc $new/proc
$bb mount -t sysfs sys $new/sys
$bb mkdir -p $new/dev/pts $new/dev/shm $new/dev/mqueue
$bb ln -s /proc/self/fd $new/dev/fd
$bb ln -s /proc/self/fd/0 $new/dev/stdin
$bb ln -s /proc/self/fd/1 $new/dev/stdout
$bb ln -s /proc/self/fd/2 $new/dev/stderr
$bb mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts $new/dev/pts
$bb mount -t tmpfs -o mode=1777 shm $new/dev/shm
$bb mount -t mqueue mqueue $new/dev/mqueue
$bb mount -t cgroup2 cgroup2 $new/sys/fs/cgroup || fail "cannot mount cgroup2"
$bb mount -t tmpfs -o mode=755 run $new/run

# The host's directories that the job needs come back below a fresh directory; the rest of it starts empty.
# A plain file system, because an overlay takes no other overlay as its upper layer.
fresh() {
    $bb mkdir -p "/scratch/fresh$1" "$new$1"
    $bb chmod "$2" "/scratch/fresh$1"
    $bb mount --bind "/scratch/fresh$1" "$new$1"
}
fresh /tmp 1777
fresh /var/tmp 1777
fresh /var/lib/beta9 755
number=0
while read -r directory; do
    if [ -d "/host$directory" ] && [ ! -e "$new$directory" ]; then
        number=$((number + 1))
        layer=/scratch/kept$number
        $bb mkdir -p "$new$directory" $layer/upper $layer/work
        $bb mount -t overlay -o "lowerdir=/host$directory,upperdir=$layer/upper,workdir=$layer/work" \
            overlay "$new$directory" || fail "cannot bring back $directory"
    fi
done < /keep

# Modules that are loaded later, on demand or by name.
kernel=$($bb uname -r)
$bb mkdir -p "$new/lib/modules/$kernel"
$bb mount --bind "/host$($bb cat /modules/directory)" "$new/lib/modules/$kernel"

$bb mkdir $new/run/nested
$bb cp /bin/busybox /job /command $new/run/nested/
exec $bb switch_root $new /run/nested/busybox sh /run/nested/job
