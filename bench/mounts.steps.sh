# What bench/mounts.sh measures, run by a shell in the container: `sh mounts.steps.sh writing|reading`, with MIB and
# FILES set and the mount at /data. Prints the hundredths of a second that /proc/uptime counts.
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
esac
