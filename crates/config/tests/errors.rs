//! Every refusal, as a user reads it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fmt::Write;

use beta9_config::{Config, ErrorKind};

fn nothing(_: &str) -> Option<OsString> {
    None
}

fn refusal(text: &str) -> beta9_config::Error {
    match Config::parse(text, "/etc/beta9.yaml", nothing) {
        Ok(_) => panic!("accepted:\n{text}"),
        Err(error) => error,
    }
}

/// The refusals of several files, one below the other.
fn refusals(files: &[&str]) -> String {
    let mut all = String::new();
    for file in files {
        let error = refusal(file);
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        writeln!(all, "[{:?}] {}\n", error.kind(), error.render()).unwrap();
    }
    all
}

/// Compares with the file of that name in `snapshots`.
fn check(name: &str, text: &str) {
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(name, text) });
}

/// A pool's settings, one line each, in a file.
fn settings(lines: &[&str]) -> Vec<String> {
    lines
        .iter()
        .map(|line| format!("worker: {{pools: {{vm: {{container_runtime_config: {{{line}}}}}}}}}"))
        .collect()
}

#[test]
fn unknown_keys() {
    check(
        "unknown_keys",
        &refusals(&[
            "worker:\n  pools:\n    vm:\n      container_runtim: runc\n",
            "worker:\n  pools:\n    vm:\n      containerRuntme: runc\n",
            "wroker:\n  root: /x\n",
            "worker:\n  colour: blue\n",
            "pools:\n  default: {}\n",
            "worker:\n  pools:\n    vm:\n      firecracker_kernel: /boot/vmlinux\n",
            "worker:\n  containerRuntimeConfig: {}\n",
            "worker: {pools: {vm: {container_runtime_config: {firecracker_memory: 512}}}}\n",
            "worker: {pools: {vm: {container_runtime_config: {firecrackerMemMb: 512}}}}\n",
            "worker: {\"root\\u001b[31m\": /x}\n",
        ]),
    );
}

#[test]
fn keys_given_twice() {
    check(
        "keys_given_twice",
        &refusals(&[
            "worker:\n  root: /a\n  root: /b\n",
            "worker:\n  container_runtime: runc\n  containerRuntime: gvisor\n",
            "debug_mode: true\nworker:\n  debugMode: false\n",
            "worker:\n  pools:\n    a: {}\n    a: {}\n",
            "worker: {}\nworker: {}\n",
        ]),
    );
}

#[test]
fn runtimes_and_fallbacks() {
    check(
        "runtimes_and_fallbacks",
        &refusals(&[
            "worker:\n  container_runtime: firecraker\n",
            "worker:\n  container_runtime: kata\n",
            "worker:\n  container_runtime: runsc\n",
            "worker:\n  container_runtime:\n",
            "worker:\n  container_runtime: \"\"\n",
            "worker:\n  container_runtime: [runc]\n",
            "worker:\n  pools:\n    vm:\n      container_runtime: 7\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback: runc\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback:\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback: [runc, qemuu]\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback: [microvm]\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback: [runc, runc]\n",
            "worker:\n  pools:\n    vm:\n      runtime_fallback: [runc, ~]\n",
        ]),
    );
}

#[test]
fn pools() {
    check(
        "pools",
        &refusals(&[
            "worker:\n  pools:\n    \"\": {}\n",
            "worker:\n  pools:\n    VM: {}\n",
            "worker:\n  pools:\n    a/b: {}\n",
            "worker:\n  pools: [default]\n",
            "worker:\n  pools:\n    vm: firecracker\n",
            "worker:\n  default_pool: wm\n  pools:\n    vm: {}\n    runc: {}\n",
            "worker:\n  default_pool: vm\n",
            "worker:\n  default_pool: 3\n",
            "- worker\n",
            "worker\n",
        ]),
    );
}

#[test]
fn values() {
    let files = settings(&[
        "firecracker_cpus: 33",
        "firecracker_cpus: -1",
        "firecracker_cpus: two",
        "firecracker_cpus: \"2\"",
        "firecracker_cpus: 1.5",
        "firecracker_cpus: 010",
        "firecracker_cpus: 99999999999999999999999999",
        "firecracker_mem_mib: 64",
        "firecracker_mem_mib: 512m",
        "firecracker_mem_mib: 99999999",
        "firecracker_kernel: boot/vmlinux",
        "firecracker_kernel: /boot/../vmlinux",
        "firecracker_kernel: /",
        "firecracker_root: /",
        "firecracker_root: [a]",
        "firecracker_bin: bin/firecracker",
        "firecracker_bin: \"a\\0b\"",
        "firecracker_bin: -x",
        "firecracker_bin: {}",
        "qemu_accel: kmv",
        "gvisor_platform: system",
        "gvisor_extra_args: \"--a='b c'\"",
        "gvisor_extra_args: [--a, \"\"]",
        "gvisor_extra_args: [--a, 3]",
        "gvisor_extra_args: kvm",
        "gvisor_extra_args: 3",
        "debug: yes",
    ]);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    check("values", &refusals(&files));
    check(
        "values_of_the_worker",
        &refusals(&["worker:\n  root: state\n", "worker:\n  debug_mode: 1\n", "debug_mode:\n"]),
    );
}

#[test]
fn texts_that_are_not_yaml() {
    check(
        "texts_that_are_not_yaml",
        &refusals(&[
            "worker: [\n",
            "worker:\n  root: /a: /b\n",
            "worker:\n root: \"/a\n",
            "worker: *nobody\n",
            "worker: {}\n--- \nworker: {}\n",
            "? [a, b]\n: c\n",
            "~: 1\n",
            "worker: !secret {}\n",
            "worker: \0\n",
            "worker: {root: .nan}\n",
        ]),
    );
}

#[test]
fn alias_bombs_and_deep_nests_are_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..10 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        writeln!(bomb, "a{level}: &a{level} [{items}]").unwrap();
    }
    let deep = format!("worker: {}{}", "[".repeat(5000), "]".repeat(5000));
    let blocks: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    let merges =
        format!("worker: &w {{root: /a}}\n{}", (0..5000).map(|n| format!("k{n}: *w\n")).collect::<String>());
    let many: String = (0..60_000).map(|n| format!("k{n}: 1\n")).collect();
    for text in [bomb, deep, blocks, merges, many] {
        let start = std::time::Instant::now();
        let error = refusal(&text);
        assert!(matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Syntax), "{error}");
        assert!(start.elapsed().as_secs() < 5, "{:?}: {error}", start.elapsed());
    }
}

#[test]
fn a_long_line_is_cut_around_the_mark() {
    let text = format!("worker: {{root: /a, {}colour: blue, default_pool: default}}", " ".repeat(300));
    check("a_long_line", &refusal(&text).render());
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("beta9.yaml");
    let load = || Config::load(&path, nothing).unwrap_err();

    let missing = load();
    assert_eq!(missing.kind(), ErrorKind::Unreadable);
    assert_eq!(missing.to_string(), format!("config {}: cannot read the file", path.display()));
    assert!(std::error::Error::source(&missing).unwrap().to_string().contains("No such file"));

    std::fs::write(&path, b"worker:\n  root: /\xff\n").unwrap();
    let latin1 = load();
    assert_eq!(
        latin1.to_string(),
        format!("config {}:2:10: not UTF-8 text; save the file in UTF-8", path.display())
    );

    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(load().kind(), ErrorKind::TooLarge);
    assert_eq!(Config::file_hash_now(&path).unwrap_err().kind(), ErrorKind::TooLarge);
    std::fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    assert!(Config::load(&path, nothing).is_ok());
}

#[test]
fn the_variable() {
    let refusal = |value: &str| {
        let value = OsString::from(value);
        Config::without_file(|name| (name == "CONTAINER_RUNTIME").then(|| value.clone()))
            .unwrap_err()
            .to_string()
    };
    let words =
        [refusal("firecraker"), refusal("docker"), refusal("runsc"), refusal(" runc"), refusal("a\nb")];
    check("the_variable", &words.join("\n"));
    use std::os::unix::ffi::OsStringExt;
    let error = Config::without_file(|_| Some(OsString::from_vec(vec![0xff]))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidValue);
}

#[test]
fn a_pool_that_does_not_exist() {
    let config = Config::parse("worker: {pools: {vm: {}, plain: {}}}", "/etc/beta9.yaml", nothing).unwrap();
    assert_eq!(
        config.pool("vn").unwrap_err().to_string(),
        "config /etc/beta9.yaml: unknown pool \"vn\"; did you mean \"vm\"? allowed: vm, plain"
    );
    assert_eq!(
        Config::without_file(nothing).unwrap().pool("gpu").unwrap_err().to_string(),
        "config (no file): unknown pool \"gpu\"; allowed: default"
    );
}
