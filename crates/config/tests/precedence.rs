//! Which source wins, and what the effective configuration looks like.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;

use beta9_config::{Config, Pool, Source};
use beta9_types::{MemoryMib, QemuAccel, RuntimeKind, RuntimeSettings};
use proptest::prelude::*;

/// Compares with the file of that name in `snapshots`.
fn check(name: &str, text: &str) {
    insta::with_settings!({omit_expression => true}, { insta::assert_snapshot!(name, text) });
}

fn variable(value: Option<&str>) -> impl Fn(&str) -> Option<OsString> {
    let value = value.map(OsString::from);
    move |name| if name == "CONTAINER_RUNTIME" { value.clone() } else { None }
}

fn parse(text: &str, value: Option<&str>) -> Config {
    Config::parse(text, "/etc/beta9.yaml", variable(value)).unwrap()
}

#[test]
fn a_pools_key_wins_over_the_environment_and_that_over_the_workers_key() {
    let pool_line = |line| Source::PoolKey { line };
    let worker_line = |line| Source::WorkerKey { line };
    for (pool, worker, environment, runtime, source) in [
        (None, None, None, "runc", Source::Default),
        (None, None, Some(""), "runc", Source::Default),
        (None, None, Some("qemu"), "qemu", Source::Environment),
        (None, Some("gvisor"), None, "gvisor", worker_line(2)),
        (None, Some("gvisor"), Some(""), "gvisor", worker_line(2)),
        (None, Some("gvisor"), Some("qemu"), "qemu", Source::Environment),
        (Some("firecracker"), None, None, "firecracker", pool_line(5)),
        (Some("firecracker"), None, Some("qemu"), "firecracker", pool_line(5)),
        (Some("firecracker"), Some("gvisor"), None, "firecracker", pool_line(5)),
        (Some("firecracker"), Some("gvisor"), Some("qemu"), "firecracker", pool_line(5)),
        (Some("microvm"), Some("gvisor"), Some("qemu"), "microvm", pool_line(5)),
        (None, None, Some("microvm"), "microvm", Source::Environment),
    ] {
        let line = |value: Option<&str>| value.map_or("#".to_owned(), |v| format!("container_runtime: {v}"));
        let text = format!("worker:\n  {}\n  pools:\n    default:\n      {}\n", line(worker), line(pool));
        let config = parse(&text, environment);
        let found = config.pool("default").unwrap();
        assert_eq!((found.runtime.to_string().as_str(), found.runtime_source), (runtime, source), "{text}");
    }
}

#[test]
fn each_pool_decides_for_itself() {
    let config = parse("worker:\n  pools:\n    own: {containerRuntime: gvisor}\n    other:\n", Some("qemu"));
    let runtimes: Vec<String> =
        config.pools().iter().map(|pool| format!("{}={}", pool.name, pool.runtime)).collect();
    assert_eq!(runtimes, ["own=gvisor", "other=qemu"]);
}

#[test]
fn without_a_file_there_is_one_pool() {
    let config = Config::without_file(variable(Some("firecracker"))).unwrap();
    let [pool] = config.pools() else { panic!("{:?}", config.pools()) };
    assert_eq!((pool.name.as_str(), pool.runtime.to_string().as_str()), ("default", "firecracker"));
    assert_eq!(pool.fallback, [RuntimeKind::Runc]);
    assert_eq!(pool.settings, RuntimeSettings::default());
    assert_eq!(config.default_pool(), Some(pool));
    assert_eq!((config.file(), config.loaded_hash(), config.debug_mode()), (None, None, false));
    assert_eq!(config.root(), "/var/lib/beta9");
}

#[test]
fn files_that_say_nothing_are_like_no_file() {
    for text in
        ["", "# a comment\n", "---\n", "{}", "~", "worker:", "worker: {pools: }", "worker: {pools: {}}"]
    {
        assert_eq!(
            parse(text, None).pools(),
            Config::without_file(variable(None)).unwrap().pools(),
            "{text:?}"
        );
    }
}

#[test]
fn the_default_pool() {
    for (text, name) in [
        ("worker: {pools: {a: , b: }}", None),
        ("worker: {pools: {a: , default: }}", Some("default")),
        ("worker: {pools: {a: }}", Some("a")),
        ("worker: {default_pool: a, pools: {a: , default: }}", Some("a")),
        ("worker: {defaultPool: \"\", pools: {a: , default: }}", Some("default")),
    ] {
        assert_eq!(parse(text, None).default_pool().map(|pool| pool.name.as_str()), name, "{text}");
    }
}

const EVERY_KEY: &str = "
debug_mode: true
worker:
  root: /srv/beta9
  container_runtime: gvisor
  default_pool: vm
  pools:
    vm:
      container_runtime: firecracker
      runtime_fallback: [qemu, gvisor]
      container_runtime_config:
        runc_bin: crun
        gvisor_bin: /opt/runsc
        gvisor_root: /run/gv
        gvisor_platform: kvm
        gvisor_extra_args: --overlay2=none --file-access=exclusive
        firecracker_bin: /opt/firecracker
        firecracker_jailer: /opt/jailer
        firecracker_root: /srv/vm
        firecracker_kernel: /boot/vmlinux
        firecracker_initrd: /boot/initrd
        firecracker_cpus: 32
        firecracker_mem_mib: 96
        qemu_bin: qemu
        qemu_accel: tcg
        qemu_kernel: /boot/pvh
        qemu_initrd: /boot/qemu-initrd
        qemu_cpus: 2
        qemu_mem_mib: 1048576
        qemu_root: /srv/qemu
        vhost_device_vsock_bin: vsock
        storage_size: 20GiB
        debug: false
        require_jailer: true
        jail_uids: 20000-29999
        disk_mib_per_second: 100
        disk_operations_per_second: 2000
        memory_balloon: true
    plain:
";

fn camel(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let (key, rest) = line.split_once(':').unwrap_or((line, ""));
        let mut up = false;
        for c in key.chars() {
            if c == '_' {
                up = true;
            } else {
                out.push(if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c });
            }
        }
        out.push_str(&line[key.len()..line.len() - rest.len()]);
        out.push_str(rest);
        out.push('\n');
    }
    out
}

#[test]
fn every_key_is_read_in_both_spellings() {
    let config = parse(EVERY_KEY, None);
    let camel = camel(EVERY_KEY);
    assert!(camel.contains("  containerRuntimeConfig:\n        runcBin: crun\n"), "{camel}");
    assert_eq!(parse(&camel, None).pools(), config.pools());

    let pool = config.default_pool().unwrap();
    assert_eq!(pool.fallback, [RuntimeKind::Qemu, RuntimeKind::Gvisor]);
    let expected = RuntimeSettings {
        runc_bin: "crun".into(),
        gvisor_bin: "/opt/runsc".into(),
        gvisor_root: "/run/gv".into(),
        gvisor_platform: "kvm".into(),
        gvisor_extra_args: vec!["--overlay2=none".into(), "--file-access=exclusive".into()],
        firecracker_bin: "/opt/firecracker".into(),
        firecracker_jailer: "/opt/jailer".into(),
        firecracker_root: "/srv/vm".into(),
        firecracker_kernel: "/boot/vmlinux".into(),
        firecracker_initrd: Some("/boot/initrd".into()),
        firecracker_cpus: 32,
        firecracker_mem_mib: MemoryMib::try_from(96).unwrap(),
        qemu_bin: "qemu".into(),
        qemu_accel: QemuAccel::Tcg,
        qemu_kernel: "/boot/pvh".into(),
        qemu_initrd: Some("/boot/qemu-initrd".into()),
        qemu_cpus: 2,
        qemu_mem_mib: MemoryMib::try_from(1 << 20).unwrap(),
        qemu_root: "/srv/qemu".into(),
        vhost_device_vsock_bin: "vsock".into(),
        storage_size: Some(20 << 30),
        debug: false,
        require_jailer: true,
        jail_uids: "20000-29999".parse().unwrap(),
        disk_mib_per_second: 100,
        disk_operations_per_second: 2000,
        memory_balloon: true,
    };
    assert_eq!(pool.settings, expected);
    assert_eq!(pool.setting_source("qemu_cpus"), Source::PoolKey { line: 28 });
    assert!(config.debug_mode());
    assert!(config.pool("plain").unwrap().settings.debug, "a pool that says nothing follows debug_mode");
    assert_eq!(config.pool("plain").unwrap().setting_source("debug"), Source::WorkerKey { line: 2 });
}

#[test]
fn zero_and_empty_mean_the_default() {
    let text = "worker: {root: '', pools: {default: {container_runtime_config: {firecracker_bin: '', \
                firecracker_kernel: , firecracker_cpus: 0, qemu_mem_mib: '', qemu_accel: '', gvisor_extra_args: [], \
                gvisor_platform: ~, firecracker_initrd: '', debug: }}}}";
    let config = parse(text, None);
    let pool = config.pool("default").unwrap();
    assert_eq!(pool.settings, RuntimeSettings::default());
    assert_eq!(pool.setting_source("firecracker_cpus"), Source::Default);
    assert_eq!(config.root(), "/var/lib/beta9");
}

#[test]
fn gvisor_arguments_as_a_list_may_hold_spaces() {
    let text =
        "worker: {pools: {default: {container_runtime_config: {gvisorExtraArgs: [--debug-log, /a b]}}}}";
    assert_eq!(parse(text, None).pools()[0].settings.gvisor_extra_args, ["--debug-log", "/a b"]);
}

#[test]
fn pools_may_share_settings_by_anchor_and_merge() {
    let text = "worker:\n  pools:\n    small:\n      container_runtime_config: &vm {firecracker_cpus: 2, \
                firecracker_mem_mib: 256}\n    large:\n      container_runtime_config:\n        <<: *vm\n        \
                firecracker_mem_mib: 2048\n    twin: {container_runtime_config: *vm}\n";
    let config = parse(text, None);
    let sizes: Vec<(u8, u32)> = config
        .pools()
        .iter()
        .map(|pool| (pool.settings.firecracker_cpus, pool.settings.firecracker_mem_mib.get()))
        .collect();
    assert_eq!(sizes, [(2, 256), (2, 2048), (2, 256)]);
    assert_eq!(config.pool("large").unwrap().setting_source("firecracker_cpus"), Source::PoolKey { line: 4 });
}

const MIXED: &str = "worker:
  container_runtime: gvisor
  pools:
    vm:
      container_runtime: firecracker
      runtime_fallback: []
      container_runtime_config:
        firecracker_cpus: 2
        gvisor_extra_args: [--debug-log, /a b]
    'true':
";

#[test]
fn show_tells_every_value_and_its_source() {
    let config = parse(MIXED, Some("qemu"));
    check("show_yaml", &config.show_yaml());
    check("show_json", &serde_json::to_string_pretty(&config.show_json()).unwrap());
    check("show_without_file", &Config::without_file(variable(None)).unwrap().show_yaml());
}

#[test]
fn what_is_shown_can_be_loaded_again() {
    for (text, environment) in
        [(MIXED, Some("qemu")), (EVERY_KEY, None), ("", None), ("debug_mode: true", None)]
    {
        let first = parse(text, environment);
        let second = parse(&first.show_yaml(), None);
        let plain = |pools: Vec<Pool>| -> Vec<_> {
            pools.into_iter().map(|p| (p.name, p.runtime, p.fallback, p.settings)).collect()
        };
        assert_eq!(plain(first.pools().to_vec()), plain(second.pools().to_vec()));
        assert_eq!((first.root(), first.debug_mode()), (second.root(), second.debug_mode()));
        assert_eq!(first.default_pool().map(|p| &p.name), second.default_pool().map(|p| &p.name));
    }
}

#[test]
fn warnings_are_about_isolation_and_about_what_has_no_effect() {
    let text = "worker:
  pools:
    a: {container_runtime: firecracker}
    b: {container_runtime: firecracker, runtime_fallback: [qemu]}
    c:
      container_runtime: microvm
      runtime_fallback: [qemu, runc]
    d: {container_runtime: gvisor, runtime_fallback: []}
    e: {container_runtime: runc}
    f: {container_runtime: runc, runtime_fallback: [runc]}
";
    let lines: Vec<String> = parse(text, Some("qemu")).warnings().iter().map(ToString::to_string).collect();
    check("warnings", &lines.join("\n"));
    assert!(parse("", None).warnings().is_empty());
    assert_eq!(parse("", Some("gvisor")).warnings().len(), 1);
}

#[test]
fn a_changed_file_has_another_hash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("beta9.yaml");
    std::fs::write(&path, "worker: {}\n").unwrap();
    let config = Config::load(&path, variable(None)).unwrap();
    assert_eq!(config.file(), Some(path.as_path()));
    // printf 'worker: {}\n' | sha256sum
    assert_eq!(
        config.loaded_hash().unwrap().hex(),
        "632fa2fe6ba81d90f9f1f4cdbcfaab59d6d34ec73aff684709691f476c8d3861"
    );
    assert_eq!(Config::file_hash_now(&path).unwrap(), *config.loaded_hash().unwrap());
    std::fs::write(&path, "worker: {}\n# touched\n").unwrap();
    assert_ne!(Config::file_hash_now(&path).unwrap(), *config.loaded_hash().unwrap());
}

/// Text that looks like configuration often enough to get past the first key.
fn text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        prop::sample::select(vec![
            "worker",
            "pools",
            "default",
            "container_runtime",
            "containerRuntimeConfig",
            "runtime_fallback",
            "runc",
            "firecracker_cpus",
            "gvisor_extra_args",
            "debug",
            "debug_mode",
            "root",
            "default_pool",
            ": ",
            ":\n",
            "\n",
            "  ",
            "    ",
            "- ",
            "[",
            "]",
            "{",
            "}",
            "&a ",
            "*a",
            "<<: *a\n",
            "\"",
            "'",
            "#",
            "|\n",
            "~",
            "0",
            "-1",
            "1e9",
            "/a",
            "\t",
            "\u{feff}",
            "\u{85}",
            "? ",
            "!!str ",
            "---\n",
            "...\n",
            "%YAML 1.2\n",
            "é",
            "\0",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_the_parser_panic(text in prop_oneof![text(), any::<String>()]) {
        match Config::parse(&text, "f", variable(None)) {
            Ok(config) => {
                let again = Config::parse(&config.show_yaml(), "f", variable(None)).unwrap();
                prop_assert_eq!(again.root(), config.root());
            }
            Err(error) => {
                prop_assert_eq!(error.to_string().lines().count(), 1, "{}", error);
                let rendered = error.render();
                prop_assert!(rendered.lines().count() == 1 || rendered.lines().count() == 4, "{}", rendered);
                prop_assert!(!rendered.chars().any(|c| c.is_control() && c != '\n'), "{:?}", rendered);
            }
        }
    }
}
