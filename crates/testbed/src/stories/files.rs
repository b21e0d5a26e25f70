//! The root file system, devices, and the kernel's own file systems.

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core devices_work,
    Core proc_and_sys_are_there_and_protected,
    Core each_container_changes_its_own_root_alone,
    Full files_of_every_kind_can_be_made,
    Full links_are_counted,
    Full many_megabytes_can_be_written,
];

fn devices_work(world: &World<'_>) -> Result<()> {
    let script = "set -e
        echo lost > /dev/null; wc -c < /dev/null
        head -c 4 /dev/zero | od -An -tx1
        head -c 1000 /dev/urandom | wc -c
        head -c 10 /dev/random | wc -c
        if echo x > /dev/full; then echo was not full; fi
        echo kept > /dev/shm/file; cat /dev/shm/file
        ls -d /dev/pts /dev/ptmx /dev/tty /dev/fd /dev/stdin /dev/stdout /dev/stderr
        echo by name > /dev/stdout";
    let finished = world.shell(script)?;
    let names = "/dev/fd\n/dev/ptmx\n/dev/pts\n/dev/stderr\n/dev/stdin\n/dev/stdout\n/dev/tty";
    finished.prints(&format!("0\n 00 00 00 00\n1000\n10\nkept\n{names}\nby name"))?;
    Ok(())
}

fn proc_and_sys_are_there_and_protected(world: &World<'_>) -> Result<()> {
    let script = "grep -c ^processor /proc/cpuinfo | grep -q '^[1-9]' && echo cpus
        test -d /sys/class && echo classes
        mkdir /sys/fs/made 2>/dev/null && echo made a directory in sys
        cat /proc/kcore 2>/dev/null | head -c 1 | wc -c
        ls /sys/firmware 2>/dev/null | wc -l
        (echo 1 > /proc/sys/kernel/core_uses_pid) 2>/dev/null && echo wrote below proc sys
        (echo h > /proc/sysrq-trigger) 2>/dev/null && echo wrote the trigger
        exit 0";
    world.shell(script)?.prints("cpus\nclasses\n0\n0")?;
    Ok(())
}

fn each_container_changes_its_own_root_alone(world: &World<'_>) -> Result<()> {
    let change = "echo mine > /etc/new && echo changed >> /etc/passwd && rm /bin/vi && mv /home /house \
                  && cat /etc/new && tail -n 1 /etc/passwd && ls /house";
    world.shell(change)?.prints("mine\nchanged\napp")?;
    let look = "ls /etc/new /house 2>/dev/null; tail -n 1 /etc/passwd; ls /bin/vi /home";
    world.shell(look)?.ends_with(0).and_then(|finished| {
        let expected = "app:x:1000:1000:app:/home/app:/bin/sh\n/bin/vi\n\n/home:\napp";
        ensure!(finished.out() == expected, "the image was changed\n{finished}");
        Ok(())
    })
}

fn files_of_every_kind_can_be_made(world: &World<'_>) -> Result<()> {
    let script = "set -e; mkdir -p /var/lib/a/b; cd /var/lib/a
        echo text > file; ln file hard; ln -s file soft; mkfifo fifo
        chown 1000:2000 file; chmod 4750 file
        stat -c '%a %u %g %h %F' file; stat -c '%F' soft fifo b
        (cat fifo) & echo through > fifo; wait
        mv b c; rmdir c; rm hard; cat soft
        touch -d '2020-02-03 04:05:06' old; date -u -r old +%Y";
    let finished = world.shell(script)?;
    finished.prints("4750 1000 2000 2 regular file\nsymbolic link\nfifo\ndirectory\nthrough\ntext\n2020")?;
    Ok(())
}

fn links_are_counted(world: &World<'_>) -> Result<()> {
    let script = "cd /var; echo > file; ln file hard; stat -c %h file; rm hard; stat -c %h file";
    world.shell(script)?.prints("2\n1")?;
    Ok(())
}

fn many_megabytes_can_be_written(world: &World<'_>) -> Result<()> {
    let script = "dd if=/dev/zero of=/var/big bs=1M count=100 2>/dev/null && sync && wc -c < /var/big";
    world.shell(script)?.prints("104857600")?;
    Ok(())
}
