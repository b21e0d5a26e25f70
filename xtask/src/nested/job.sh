# PID 1 of the nested machine from then on: readies the system, runs /run/nested/command and reports how it ended.
# stdout, stderr and the report leave through a virtio port each. The job writes into pipes, because a port can be
# opened once only and /dev/stdout must stay openable.
#
# Debian's busybox prefers its own applets to programs of the same name: what must be the real one has a path.
bb=/run/nested/busybox
port() { $bb grep -l "^$1\$" /sys/class/virtio-ports/*/name | $bb sed 's,.*/\(vport[^/]*\)/name,/dev/\1,'; }
report=$(port report)
exec 3> "$report"
fail() { echo "failed $*" >&3; $bb reboot -f; }

$bb hostname nested
$bb ip link set lo up
ulimit -n 1048576
for controller in cpu cpuset io memory pids; do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
/sbin/modprobe -a kvm_amd tun loop erofs squashfs fuse overlay || fail "cannot load modules"
[ -c /dev/kvm ] || fail "no /dev/kvm"

$bb mkfifo /run/nested/out /run/nested/err
$bb cat < /run/nested/out > "$(port stdout)" 3>&- &
out=$!
$bb cat < /run/nested/err > "$(port stderr)" 3>&- &
err=$!
echo ready >&3
$bb setsid /bin/sh /run/nested/command < /dev/null > /run/nested/out 2> /run/nested/err 3>&- &
wait $!
code=$?
# What the job left running may hold the pipes open: the rest of the output gets a moment, not for ever.
( $bb sleep 5; $bb kill $out $err ) 2>/dev/null &
wait $out $err
echo "exit $code" >&3
$bb reboot -f
