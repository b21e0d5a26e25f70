use beta9_types::ImageReference;
use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder};

use super::*;

fn image(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> ImageConfiguration {
    let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
    let config = ConfigBuilder::default()
        .entrypoint(owned(entrypoint))
        .cmd(owned(cmd))
        .env(owned(env))
        .build()
        .unwrap();
    let rootfs =
        oci_spec::image::RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().unwrap();
    ImageConfigurationBuilder::default()
        .architecture("amd64")
        .os("linux")
        .rootfs(rootfs)
        .config(config)
        .build()
        .unwrap()
}

pub(super) fn request(command: &[&str]) -> ContainerRequest {
    ContainerRequest {
        image: ImageReference::parse("x").unwrap(),
        command: command.iter().map(|item| (*item).to_owned()).collect(),
        env: Vec::new(),
        cwd: None,
        user: None,
        hostname: None,
        mounts: Vec::new(),
        memory: None,
        name: None,
        runtime: None,
        pool: None,
        stdin: false,
        auto_remove: false,
        options: beta9_types::ContainerOptions::default(),
        terminal: None,
        attach: false,
        log_max_size: None,
        log_max_files: None,
    }
}

fn planned(request: &ContainerRequest, image: &ImageConfiguration) -> Result<Plan> {
    let tree = tempfile::tempdir().unwrap();
    let host = HostLimits { swap: true, disk_weight: true, cpus: vec![0, 1] };
    let id = ContainerId::parse("c1").unwrap();
    let settings = RuntimeSettings::default();
    let place = Place {
        id: &id,
        root: tree.path(),
        directory: Path::new("/own"),
        tree: tree.path(),
        runtime: RuntimeKind::Runc,
        settings: &settings,
        host: &host,
    };
    plan(&place, request, image)
}

#[test]
fn a_command_keeps_the_entrypoint_and_replaces_the_default() {
    let image = image(&["/entry"], &["default"], &[]);
    assert_eq!(planned(&request(&[]), &image).unwrap().args, ["/entry", "default"]);
    assert_eq!(planned(&request(&["a", "b"]), &image).unwrap().args, ["/entry", "a", "b"]);
}

#[test]
fn an_image_without_a_command_needs_one() {
    let error = planned(&request(&[]), &image(&[], &[], &[])).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn the_request_wins_over_the_image() {
    let mut request = request(&["true"]);
    request.env = vec!["A=request".to_owned(), "PATH=/only".to_owned()];
    let spec = planned(&request, &image(&[], &[], &["A=image", "B=image"])).unwrap().spec;
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env, ["PATH=/only", "HOSTNAME=c1", "HOME=/", "A=request", "B=image"]);
}

#[test]
fn a_relative_working_directory_is_refused() {
    let mut request = request(&["true"]);
    request.cwd = Some("work".to_owned());
    assert!(planned(&request, &image(&[], &[], &[])).is_err());
}

#[test]
fn the_spec_is_what_it_was() {
    let mut request = request(&["sh", "-c", "exit 7"]);
    request.memory = Some("64m".parse().unwrap());
    request.mounts = vec!["/src:/work:ro".parse().unwrap()];
    let mut spec = serde_json::to_value(planned(&request, &image(&[], &[], &[])).unwrap().spec).unwrap();
    // Sets have no order of their own.
    spec["linux"]["seccomp"] = "as the tests of seccomp say".into();
    for set in ["bounding", "permitted", "effective"] {
        let list = spec["process"]["capabilities"][set].as_array_mut().unwrap();
        list.sort_by_key(|item| item.to_string());
    }
    insta::assert_json_snapshot!(spec);
}

#[test]
fn only_root_starts_with_capabilities() {
    let sets = |user: &str| {
        let mut request = request(&["true"]);
        request.user = Some(user.parse().unwrap());
        let spec = planned(&request, &image(&[], &[], &[])).unwrap().spec;
        let sets = spec.process().as_ref().unwrap().capabilities().clone().unwrap();
        [sets.bounding(), sets.permitted(), sets.effective()].map(|set| set.clone().unwrap_or_default().len())
    };
    assert_eq!(sets("0"), [14, 14, 14]);
    assert_eq!(sets("1000"), [14, 0, 0]);
}
