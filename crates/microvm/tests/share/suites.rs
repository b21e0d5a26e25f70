//! What people do in a directory, and what file systems are tried with, in a share that this machine's own kernel mounts.
//!
//! ```text
//! program ─▶ this kernel (FUSE) ─▶ a relay as the guest's init is one ══socket══▶ file server
//! ```
//!
//! Programs that are not there are skipped, by name.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::guest::Server;

const MOST: usize = (1 << 20) + 4096;

/// A share that is mounted on this machine.
struct Kernel {
    server: Server,
    point: PathBuf,
}

impl Kernel {
    fn mounted() -> Option<Self> {
        let server = Server::start("c1")?;
        let Ok(device) = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) else {
            eprintln!("skipped: no /dev/fuse");
            return None;
        };
        let point = server.host.path().join("mounted");
        fs::create_dir(&point).unwrap();
        let number = device.as_raw_fd();
        let data =
            format!("fd={number},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions\0");
        let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).unwrap();
        mount("beta9", &point, "fuse", MountFlags::NODEV | MountFlags::NOSUID, data).unwrap();
        let (to, from) = (server.connection.try_clone().unwrap(), server.connection.try_clone().unwrap());
        from.set_read_timeout(None).unwrap();
        let device_too = device.try_clone().unwrap();
        std::thread::spawn(move || requests(fs::File::from(device), to));
        std::thread::spawn(move || replies(from, fs::File::from(device_too)));
        Some(Self { server, point })
    }

    /// A new directory in the writable export, as it is mounted.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.point.join("0").join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// The same as it is on the host.
    fn host(&self, name: &str) -> PathBuf {
        self.server.host.path().join("exports/rw").join(name)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = self.server.connection.shutdown(std::net::Shutdown::Both);
        let _ = unmount(&self.point, UnmountFlags::DETACH);
    }
}

fn requests(mut device: fs::File, mut to: UnixStream) {
    let mut buffer = vec![0; MOST];
    while let Ok(length) = device.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn replies(mut from: UnixStream, mut device: fs::File) {
    let mut buffer = vec![0; MOST];
    while from.read_exact(&mut buffer[..16]).is_ok() {
        let length = u32::from_le_bytes(*buffer.first_chunk().unwrap()) as usize;
        if from.read_exact(&mut buffer[16..length]).is_err() {
            return;
        }
        // One that was interrupted is not waited for.
        let _ = device.write(&buffer[..length]);
    }
}

/// `None` where the program is missing.
fn program(name: &str, variable: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        named.or_else(|| std::env::split_paths(&path).map(|at| at.join(name)).find(|path| path.exists()));
    if found.is_none() {
        eprintln!("skipped: no {name}; {variable} may say where it is");
    }
    found
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn shell(directory: &Path, script: &str) -> String {
    succeeds(Command::new("sh").args(["-ec", script]).current_dir(directory))
}

#[test]
fn ten_thousand_files_go_through_tar() {
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("many");
    let from = kernel.server.host.path().join("from");
    fs::create_dir(&from).unwrap();
    let script = format!(
        "many=$PWD && cd {} && seq 10000 | split -l 1 -a 4 - f && tar cf - . | tar xf - -C $many \\
         && diff -r . $many && ls $many | wc -l && rm $many/f?aa?",
        from.display()
    );
    assert_eq!(shell(&directory, &script).trim(), "10000");
    let left = fs::read_dir(kernel.host("many")).unwrap().count();
    assert!(left > 9000 && left < 10_000, "{left} files are left");
}

#[test]
fn git_clones_and_commits() {
    let Some(git) = program("git", "GIT") else { return };
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("git");
    let git = git.display();
    let script = format!(
        "export GIT_CONFIG_GLOBAL=/dev/null HOME=$PWD GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a GIT_COMMITTER_NAME=a \
         GIT_COMMITTER_EMAIL=a\n\
         {git} init -q one && cd one && for i in $(seq 20); do echo $i > f$i; {git} add f$i; {git} commit -qm $i; done\n\
         {git} gc -q && cd .. && {git} clone -q one two && cd two && {git} fsck --strict && {git} log --oneline | wc -l\n\
         {git} status --porcelain | wc -l && diff -r --exclude=.git . ../one"
    );
    let out = shell(&directory, &script);
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["20", "0"]);
}

#[test]
fn sqlite_keeps_a_database() {
    let Some(sqlite) = program("sqlite3", "SQLITE3") else { return };
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("sqlite");
    let sqlite = sqlite.display();
    let script = format!(
        "{sqlite} db 'create table t(n integer primary key, text);'\n\
         for i in 1 2 3 4; do (for j in $(seq 25); do \
         {sqlite} -cmd '.timeout 60000' db \"insert into t(text) values($i * 1000 + $j);\"; done) & done; wait\n\
         {sqlite} db 'select count(*), sum(text) from t; pragma integrity_check;'"
    );
    // Four writers at once: the locks are the kernel's that has mounted it.
    assert_eq!(shell(&directory, &script).trim(), "100|251300\nok");
    let kept = succeeds(
        Command::new(program("sqlite3", "SQLITE3").unwrap())
            .arg(kernel.host("sqlite/db"))
            .arg("pragma integrity_check;"),
    );
    assert_eq!(kept.trim(), "ok");
}

#[test]
fn python_makes_an_environment() {
    let Some(python) = program("python3", "PYTHON3") else { return };
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("python");
    let script = format!(
        "{} -m venv --without-pip env && ./env/bin/python -c 'import sys, json, sqlite3; print(sys.prefix)'",
        python.display()
    );
    assert_eq!(shell(&directory, &script).trim(), directory.join("env").to_str().unwrap());
}

#[test]
fn holes_large_files_and_attributes_are_kept() {
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("files");
    let script = "truncate -s 3G sparse && printf x | dd of=sparse bs=1 seek=2147483650 conv=notrunc 2>/dev/null
        stat -c '%s' sparse; test $(stat -c %b sparse) -lt 1000 && echo sparse
        head -c 20000000 /dev/urandom > big && cp big again && cmp big again && sha256sum < big
        chmod 4755 big && chown 1000:2000 again && touch -d @1.5 again && stat -c '%u %g %a %Y' again
        fallocate -l 1M full && stat -c %s full && fallocate -p -o 4096 -l 4096 full && ln big hard && stat -c %h big";
    let out = shell(&directory, script);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(&lines[..2], ["3221225472", "sparse"]);
    assert_eq!(&lines[3..], ["1000 2000 644 1", "1048576", "2"]);
    let sum = shell(&kernel.host("files"), "sha256sum < big");
    assert_eq!(sum.trim(), lines[2]);
    assert_eq!(fs::metadata(kernel.host("files/hard")).unwrap().mode() & 0o7777, 0o4755);
}

/// The only one of its kind that this kernel makes: what is written by somebody else loses its rights.
#[test]
fn a_write_by_another_takes_set_user_id_away() {
    if program("setpriv", "SETPRIV").is_none() {
        return;
    }
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("rights");
    let script = "echo x > file && chmod 6777 file && chmod 777 . \
                  && setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'echo y >> file' && stat -c %a file
        chmod 6777 file && setpriv --reuid 1000 --regid 1000 --clear-groups sh -c ': > file' && stat -c %a file
        mkdir group && chown 0:2000 group && chmod 2770 group
        setpriv --reuid 1000 --regid 1000 --groups 2000 sh -c 'echo z > group/file; mkdir group/sub'
        stat -c '%u %g %a' group/file group/sub";
    let out = shell(&directory, script);
    assert_eq!(out.lines().collect::<Vec<_>>(), ["777", "777", "1000 2000 644", "1000 2000 2755"]);
}

/// `BETA9_FSX` is the program of the crate of that name, or FreeBSD's.
#[test]
fn fsx_finds_no_mismatch() {
    let Some(fsx) = program("fsx", "BETA9_FSX") else { return };
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("fsx");
    // Mapped writes need a page cache, which a writable export has only where it is asked for.
    fs::write(directory.join("fsx.toml"), "[weights]\nmapread = 0\nmapwrite = 0\n").unwrap();
    let mut command = Command::new(fsx);
    command.args(["-N", "4000", "-S", "7", "-f", "fsx.toml", "file"]).current_dir(&directory);
    succeeds(&mut command);
}

/// `BETA9_PJDFSTEST` is the program of the crate of that name. What it may fail on is listed in docs/mounts.md.
#[test]
fn pjdfstest_finds_what_is_known() {
    let Some(suite) = program("pjdfstest", "BETA9_PJDFSTEST") else { return };
    let Some(kernel) = Kernel::mounted() else { return };
    let directory = kernel.directory("posix");
    let settings = "[features]\nfile_flags = []\nsecondary_fs = \"/tmp\"\nposix_fallocate = {}\nrename_ctime = {}\n\
                    utimensat = {}\nutime_now = {}\n\n[settings]\nnaptime = 0.01\nallow_remount = false\n\n\
                    [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"], [\"bin\", \"bin\"]]\n";
    let config = kernel.server.host.path().join("pjdfstest.toml");
    fs::write(&config, settings).unwrap();
    let output = Command::new(suite).arg("-c").arg(&config).arg("-p").arg(&directory).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let of = |end: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.trim_end().ends_with(end));
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let is_known = |name: &String| name.ends_with("::block") || name.ends_with("::char");
    let failed: Vec<_> = of(" FAILED").into_iter().filter(|name| !is_known(name)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(of(" ok").len() > 250, "{} passed: {text}", of(" ok").len());
}
