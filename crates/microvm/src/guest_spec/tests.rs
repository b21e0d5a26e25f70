use std::path::{Path, PathBuf};

use beta9_runtime::ErrorKind;
use beta9_types::BindMount;
use oci_spec::runtime::{Process, Spec};

use super::{Stdin, refuse_unsupported, translate};

fn spec(json: &str) -> Spec {
    serde_json::from_str(json).unwrap()
}

/// The smallest spec, with `linux` and more as given.
fn with(rest: &str) -> Spec {
    spec(&format!(
        r#"{{"ociVersion":"1.0.2","process":{{"user":{{"uid":0,"gid":0}},"args":["sh"],"cwd":"/"}}{rest}}}"#
    ))
}

#[test]
fn a_full_spec_becomes_numbers() {
    let spec = spec(
        r#"{
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "box",
        "process": {
            "user": {"uid": 1000, "gid": 100, "additionalGids": [4, 24], "umask": 18},
            "args": ["python3", "-c", "print(1)"],
            "env": ["PATH=/bin", "EMPTY="],
            "cwd": "/work",
            "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": "/etc/passwd", "options": ["rbind", "rprivate"]},
            {"destination": "/data", "source": "/tmp", "options": ["bind", "nodev"]}
        ],
        "linux": {
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 67108864, "swap": 67108864},
                "cpu": {"quota": 150000, "shares": 512},
                "pids": {"limit": 64}
            },
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmax": "1"},
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/a"}, {"type": "mount"}],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"]
        }}"#,
    );
    refuse_unsupported(&spec).unwrap();
    let binds: Vec<BindMount> =
        vec!["/tmp:/data".parse().unwrap(), "/etc/passwd:/etc/hosts:ro".parse().unwrap()];
    insta::assert_debug_snapshot!(translate(&spec, &binds, Path::new("/own"), Stdin::Open).unwrap());
}

#[test]
fn what_the_guest_does_not_do_is_refused_by_name() {
    let cases = [
        (r#","domainname":"d""#, "domainname"),
        (r#","hooks":{"poststop":[{"path":"/x"}]}"#, "hooks"),
        (r#","linux":{"namespaces":[{"type":"user"}]}"#, "a user namespace"),
        (r#","linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}"#, "joining a pid namespace"),
        (r#","linux":{"resources":{"memory":{"disableOOMKiller":true}}}"#, "memory.disableOOMKiller"),
        (r#","linux":{"rootfsPropagation":"rshared"}"#, "shared linux.rootfsPropagation"),
    ];
    for (rest, name) in cases {
        let error = refuse_unsupported(&with(rest)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.to_string(), format!("a microVM does not support {name}"), "{rest}");
    }
}

#[test]
fn mounts_that_cannot_work_are_refused() {
    let cases = [
        (r#"{"destination":"/x","type":"bind","source":"/etc"}"#, "is not among the shares"),
        (
            r#"{"destination":"/x","type":"ext4","source":"/dev/sda"}"#,
            "file system \"ext4\" on the mount at /x",
        ),
        (r#"{"destination":"x","type":"tmpfs"}"#, "is not absolute"),
        (r#"{"destination":"/a/../b","type":"tmpfs"}"#, "contains .."),
        (r#"{"destination":"/x","type":"tmpfs","options":["tmpcopyup"]}"#, "option tmpcopyup"),
        (r#"{"destination":"/t","type":"bind","source":"/tmp","options":["size=1"]}"#, "option size=1"),
        (r#"{"destination":"/n","type":"bind","source":"/dev/null"}"#, "neither a file nor a directory"),
    ];
    let binds = ["/tmp:/t".parse().unwrap(), "/dev/null:/n".parse().unwrap()];
    for (mount, expected) in cases {
        let spec = with(&format!(r#","mounts":[{mount}]"#));
        let text = translate(&spec, &binds, Path::new("/own"), Stdin::Closed).unwrap_err().to_string();
        assert!(text.contains(expected), "{mount}: {text}");
    }
}

#[test]
fn settings_of_the_whole_kernel_are_refused() {
    for name in ["kernel.panic", "vm.swappiness", "net..x", "net.a/b", "net.ipv4.\u{0}"] {
        let mut spec = with(r#","linux":{}"#);
        let sysctl = [(name.to_owned(), "1".to_owned())].into();
        spec.linux_mut().as_mut().unwrap().set_sysctl(Some(sysctl));
        assert!(translate(&spec, &[], Path::new("/own"), Stdin::Closed).is_err(), "{name} was accepted");
    }
}

#[test]
fn nonsense_in_the_process_is_found_before_the_guest_sees_it() {
    let change = |change: fn(&mut Process) -> &mut Process| {
        let mut spec = with("");
        change(spec.process_mut().as_mut().unwrap());
        translate(&spec, &[], Path::new("/own"), Stdin::Closed).is_err()
    };
    assert!(change(|process| process.set_args(Some(Vec::new()))));
    assert!(change(|process| process.set_args(Some(vec!["a\0".into()]))));
    assert!(change(|process| process.set_env(Some(vec!["=x".into()]))));
    assert!(change(|process| process.set_env(Some(vec!["novalue".into()]))));
    assert!(change(|process| process.set_cwd(PathBuf::from("relative"))));
    assert!(!change(|process| process));
}
