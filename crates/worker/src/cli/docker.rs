//! What docker has and this command line has not, by name and with what to do instead: whoever types it is told, and nothing
//! is silently left out.

/// Flags of `run` and `create`.
const OF_RUN: &[(&str, &str)] = &[
    ("--annotation", "use --label"),
    ("--attach", "output is shown unless -d says otherwise; pass stdin on by -i"),
    ("-a", "output is shown unless -d says otherwise; pass stdin on by -i"),
    ("--blkio-weight-device", "use --blkio-weight, or --device-read-bps and its like"),
    ("--cgroup-parent", "every container has a cgroup of its own; limit it by -m, --cpus and --pids-limit"),
    ("--cgroupns", "every container has a cgroup namespace of its own"),
    ("--cpu-count", "use --cpus"),
    ("--cpu-percent", "use --cpus"),
    ("--cpu-rt-period", "use --cpus, or --ulimit rtprio="),
    ("--cpu-rt-runtime", "use --cpus, or --ulimit rtprio="),
    ("--device-cgroup-rule", "use --device for each device"),
    ("--disable-content-trust", "images are verified by digest; leave it out"),
    ("--domainname", "use --hostname with the whole name, or --add-host"),
    ("--gpus", "there are no GPUs here; use --device on runc"),
    ("--io-maxbandwidth", "use --device-read-bps and --device-write-bps"),
    ("--io-maxiops", "use --device-read-iops and --device-write-iops"),
    ("--ipc", "every container has IPC of its own; size its shared memory by --shm-size"),
    ("--isolation", "use --runtime"),
    ("--kernel-memory", "use --memory, which counts the kernel's memory, too"),
    ("--link", "use --add-host"),
    ("--link-local-ip", "containers have loopback alone; leave it out"),
    ("--oom-kill-disable", "use --memory; a container that is out of memory ends with 137 and reason oom"),
    ("--oom-score-adj", "use --memory-reservation for what must go on"),
    ("--pid", "every container has processes of its own; use `exec` to look into one"),
    (
        "--privileged",
        "use --cap-add, --device and --security-opt for what is needed, or a VM: --runtime microvm",
    ),
    ("--memory-swappiness", "use --memory-swap"),
    ("--userns", "use --user for another user, or --runtime gvisor or microvm for another kernel"),
    ("--use-api-socket", "use -v with the path of a socket, where a container is to be trusted with it"),
    ("--uts", "every container has a host name of its own; use --hostname"),
    ("--volume-driver", "volumes are directories below the root; use -v with a path for any other place"),
    ("--health-cmd", "there are no health checks yet; ask from outside with `exec`"),
    ("--health-interval", "there are no health checks yet; ask from outside with `exec`"),
    ("--health-retries", "there are no health checks yet; ask from outside with `exec`"),
    ("--health-start-interval", "there are no health checks yet; ask from outside with `exec`"),
    ("--health-start-period", "there are no health checks yet; ask from outside with `exec`"),
    ("--health-timeout", "there are no health checks yet; ask from outside with `exec`"),
    ("--no-healthcheck", "there are no health checks; leave it out"),
    ("--log-driver", "read the log by `logs`, in CRI format; --log-opt limits it"),
    ("--publish-all", "use -p with each port"),
    ("-P", "use -p with each port"),
    (
        "--expose",
        "every port of a container can be reached on its own address; use -p to serve it on the host",
    ),
    ("--ip", "the worker gives addresses; `inspect` shows them"),
    ("--ip6", "the worker gives addresses; `inspect` shows them"),
    ("--mac-address", "the worker gives addresses; `inspect` shows them"),
];

/// Flags of other commands.
const OF_COMMANDS: &[(&str, &[(&str, &str)])] = &[
    ("exec", &[("--privileged", "a process gets what its container has; use `run --cap-add` for more")]),
    (
        "logs",
        &[(
            "--details",
            "a log has lines and times alone; `inspect --format '{{json .labels}}'` shows labels",
        )],
    ),
    (
        "update",
        &[
            ("--blkio-weight", "it is chosen when a container is made, by `create --blkio-weight`"),
            ("--cpu-period", "use --cpus"),
            ("--cpu-quota", "use --cpus"),
            ("--cpu-rt-period", "use --cpus"),
            ("--cpu-rt-runtime", "use --cpus"),
            (
                "--cpu-shares",
                "they are chosen when a container is made, by `create --cpu-shares`; use --cpus",
            ),
            ("-c", "they are chosen when a container is made, by `create --cpu-shares`; use --cpus"),
            ("--cpuset-cpus", "they are chosen when a container is made, by `create --cpuset-cpus`"),
            ("--cpuset-mems", "they are chosen when a container is made, by `create --cpuset-mems`"),
            ("--kernel-memory", "use --memory, which counts the kernel's memory, too"),
            ("--memory-reservation", "it is chosen when a container is made; use --memory"),
            ("--memory-swap", "swap stays as much as it was beside the memory; use --memory"),
        ],
    ),
    (
        "start",
        &[
            ("--checkpoint", "there are no checkpoints; a container starts with the files that it has"),
            ("--checkpoint-dir", "there are no checkpoints; a container starts with the files that it has"),
        ],
    ),
    (
        "rm",
        &[
            ("--link", "containers are not linked; leave it out"),
            ("-l", "containers are not linked; leave it out"),
        ],
    ),
    (
        "stats",
        &[
            ("--all", "what does not run uses nothing; `ps -a` lists it"),
            ("-a", "what does not run uses nothing; `ps -a` lists it"),
        ],
    ),
    (
        "pull",
        &[
            ("--all-tags", "name each tag"),
            ("-a", "name each tag"),
            ("--disable-content-trust", "images are verified by digest; leave it out"),
        ],
    ),
    (
        "push",
        &[
            ("--all-tags", "name each tag"),
            ("-a", "name each tag"),
            ("--disable-content-trust", "images are verified by digest; leave it out"),
            ("--platform", "an image here is for one platform; leave it out"),
        ],
    ),
    (
        "image ls",
        &[
            ("--all", "every image is listed; leave it out"),
            ("-a", "every image is listed; leave it out"),
            ("--digests", "they are listed anyway; --no-trunc prints them whole"),
            ("--tree", "an image here is for one platform; leave it out"),
        ],
    ),
    ("image inspect", &[("--platform", "an image here is for one platform; leave it out")]),
    (
        "image history",
        &[
            ("--format", "use --output json"),
            ("--human", "sizes are for eyes in a table, and numbers in --output json"),
            ("-H", "sizes are for eyes in a table, and numbers in --output json"),
            ("--no-trunc", "use --output json"),
            ("--quiet", "use --output json"),
            ("-q", "use --output json"),
            ("--platform", "an image here is for one platform; leave it out"),
        ],
    ),
    (
        "image rm",
        &[
            ("--no-prune", "what is shared with other images stays; leave it out"),
            ("--platform", "an image here is for one platform; leave it out"),
        ],
    ),
    ("image prune", &[("--filter", "use -a for every image that no container has, or `image rm` for some")]),
    (
        "image import",
        &[
            ("--change", "an image is taken in as it is; use the flags of `run`"),
            ("-c", "an image is taken in as it is; use the flags of `run`"),
            ("--message", "an image is taken in as it is; leave it out"),
            ("-m", "an image is taken in as it is; leave it out"),
            ("--platform", "an image is for the machine that it says; leave it out"),
        ],
    ),
    (
        "",
        &[
            ("--host", "use --root, with the directory of the worker that is meant"),
            ("-H", "use --root, with the directory of the worker that is meant"),
            ("--context", "use --root, with the directory of the worker that is meant"),
            ("-c", "use --root, with the directory of the worker that is meant"),
            ("--debug", "use --verbose"),
            ("-D", "use --verbose"),
            ("--log-level", "use --verbose"),
            ("-l", "use --verbose"),
            ("--tls", "the worker listens on a socket of its root directory alone; leave it out"),
            ("--tlscacert", "the worker listens on a socket of its root directory alone; leave it out"),
            ("--tlscert", "the worker listens on a socket of its root directory alone; leave it out"),
            ("--tlskey", "the worker listens on a socket of its root directory alone; leave it out"),
            ("--tlsverify", "the worker listens on a socket of its root directory alone; leave it out"),
            ("-v", "use --version"),
        ],
    ),
];

/// Commands.
const COMMANDS: &[(&str, &str)] = &[
    ("build", "build with another tool, and take the image in by `image import`"),
    ("builder", "build with another tool, and take the image in by `image import`"),
    ("buildx", "build with another tool, and take the image in by `image import`"),
    ("checkpoint", "there are no checkpoints"),
    ("commit", "copy files out by `cp`, and take a tree in by `image import`"),
    ("compose", "start each container by `run`"),
    ("container ls", "use `ps`"),
    ("context", "use --root, with the directory of the worker that is meant"),
    ("diff", "look into it by `cp CONTAINER:PATH -`"),
    ("export", "use `cp CONTAINER:/ -` for a container's files, or `image export` for an image"),
    ("history", "use `image history`"),
    ("image build", "build with another tool, and take the image in by `image import`"),
    ("image load", "use `image import`"),
    ("image save", "use `image export`"),
    ("image tag", "use `image import --tag`, or `push IMAGE DESTINATION`"),
    ("images", "use `image ls`"),
    ("import", "use `image import`"),
    ("info", "use `status`, or `doctor` for what this machine can run"),
    ("load", "use `image import`"),
    ("manifest", "use `image inspect`"),
    ("network", "every container is on the worker's bridge, unless --network says otherwise"),
    ("node", "there is no swarm"),
    ("plugin", "there are no plugins"),
    ("rmi", "use `image rm`"),
    ("save", "use `image export`"),
    ("scout", "use another tool on what `image export` writes"),
    ("search", "look on the registry's own pages, and use `pull`"),
    ("secret", "there is no swarm; use -v with a file"),
    ("service", "there is no swarm"),
    ("stack", "there is no swarm"),
    ("swarm", "there is no swarm"),
    ("system", "use `image prune` and `container prune`, or `status`"),
    ("tag", "use `image import --tag`, or `push IMAGE DESTINATION`"),
    ("trust", "images are verified by digest"),
    ("version", "use --version"),
];

/// What to do instead of a flag of docker's; `None` if docker has no such flag, either.
pub(super) fn instead_of_flag(command: &str, flag: &str) -> Option<&'static str> {
    let of_command = match command {
        "run" | "create" => OF_RUN,
        _ => OF_COMMANDS.iter().find(|(name, _)| *name == command)?.1,
    };
    of_command.iter().find(|(name, _)| *name == flag).map(|(_, instead)| *instead)
}

/// The same for a command.
pub(super) fn instead_of_command(command: &str) -> Option<&'static str> {
    COMMANDS.iter().find(|(name, _)| *name == command).map(|(_, instead)| *instead)
}

#[cfg(test)]
mod tests;
