use super::*;

fn volume(text: &str) -> MountRequest {
    MountRequest::parse_volume(text).unwrap()
}

fn mount(text: &str) -> MountRequest {
    match MountFlag::parse(text).unwrap() {
        MountFlag::Mount(request) => request,
        MountFlag::Tmpfs(tmpfs) => panic!("{text} is a memory file system: {tmpfs}"),
    }
}

fn name(request: &MountRequest) -> Option<&str> {
    match &request.origin {
        MountOrigin::Volume { name, .. } => name.as_ref().map(VolumeName::as_str),
        MountOrigin::Host { path, .. } => panic!("{} is a path", path.display()),
    }
}

#[test]
fn volumes_are_read_as_docker_reads_them() {
    let request = volume("/src:/work:ro,nosuid,rslave");
    assert_eq!(request.origin, MountOrigin::Host { path: "/src".into(), missing: Missing::Create });
    assert_eq!((request.access, request.propagation), (MountAccess::ReadOnly, Propagation::Slave));
    assert_eq!(request.limits.options().collect::<Vec<_>>(), ["nosuid"]);
    assert_eq!(name(&volume("cache:/work")), Some("cache"));
    assert_eq!(name(&volume("/data")), None);
    assert_eq!(volume("/data//sub/./").target, Path::new("/data/sub"));
    assert_eq!(volume("/a:/b:cached").consistency, Some(Consistency::Cached));
    let MountOrigin::Volume { content, .. } = volume("cache:/work:nocopy").origin else { panic!() };
    assert_eq!(content, VolumeContent::Nothing);
    for bad in [
        "",
        "work",
        "a:b",
        "/a:b",
        "/a:ro",
        "/a:/b:xx",
        "/a:/b:ro:x",
        "/a:/",
        "/",
        "/a/../b:/c",
        "/a:/b/..",
        "./a:/b",
        "a/b:/c",
        ":/b",
        "/a:/b:nocopy",
    ] {
        assert!(MountRequest::parse_volume(bad).is_err(), "{bad:?} was accepted");
    }
}

#[test]
fn mounts_are_read_as_docker_reads_them() {
    let request = mount("type=bind,src=/a,dst=/b,readonly,bind-propagation=rslave,noexec");
    assert_eq!(request.origin, MountOrigin::Host { path: "/a".into(), missing: Missing::Refuse });
    assert_eq!((request.access, request.propagation), (MountAccess::ReadOnly, Propagation::Slave));
    assert!(request.limits.noexec);
    assert_eq!(mount("type=bind,source=/a,target=/b,readonly=false").access, MountAccess::ReadWrite);
    assert_eq!(name(&mount("source=cache,target=/b")), Some("cache"));
    assert_eq!(name(&mount("target=/b,volume-label=a=b,volume-nocopy")), None);
    let quoted = mount("\"source=cache\",target=/b,\"volume-label=a=1,2\"");
    let MountOrigin::Volume { labels, .. } = quoted.origin else { panic!() };
    assert_eq!(labels["a"], "1,2");
    let tmpfs = MountFlag::parse("type=tmpfs,target=/t,tmpfs-size=64MB,tmpfs-mode=1770,readonly").unwrap();
    assert_eq!(tmpfs, MountFlag::Tmpfs("/t:size=64m,mode=1770,ro".parse().unwrap()));
    for bad in [
        "",
        "type=bind,target=/b",
        "type=bind,source=a,target=/b",
        "type=bind,source=/a",
        "type=bind,source=/a,target=/b,volume-nocopy",
        "type=volume,source=x,target=/b,bind-propagation=rslave",
        "type=tmpfs,source=/a,target=/b",
        "type=npipe,source=/a,target=/b",
        "type=bind,source=/a,target=/b,unknown=1",
        "type=bind,source=/a,target=/b,readonly=perhaps",
        "type=tmpfs,target=/b,tmpfs-mode=9",
        "\"type=bind,source=/a,target=/b",
        "type=volume,source=a/b,target=/c",
        "type=volume,volume-driver=nfs,source=a,target=/c",
    ] {
        assert!(MountFlag::parse(bad).is_err(), "{bad:?} was accepted");
    }
}
