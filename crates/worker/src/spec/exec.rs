//! From a container's spec and a command to another process of the container.
//!
//! docker's rules: the process has the container's environment, user, rights and working directory, except for what is
//! asked for; another user has the container's capabilities if it is root, and none if it is not.

use std::collections::HashSet;
use std::path::PathBuf;

use beta9_supervisor::{ContainerDirectory, Record, StateFile};
use beta9_types::{RuntimeKind, User};
use oci_spec::runtime::{LinuxCapabilities, Process, Spec, UserBuilder};

use super::user::{Account, Accounts};
use crate::error::{Error, ErrorKind, Result};

/// The type of a terminal where nobody says: docker's.
pub(super) const TERMINAL_TYPE: &str = "TERM=xterm";

/// What is asked for beside the program.
#[derive(Debug, Default)]
pub(crate) struct ExecChoices {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<User>,
    pub(crate) has_terminal: bool,
}

/// The process to execute in the container of `directory`, whose users are in `accounts`.
pub(crate) fn exec_process(
    directory: &ContainerDirectory,
    choices: ExecChoices,
    accounts: &Accounts,
) -> Result<Process> {
    let path = directory.spec();
    let spec = Spec::load(&path).map_err(|e| Error::internal(format!("read {}", path.display()), e))?;
    build(spec.process().clone().unwrap_or_default(), choices, accounts)
}

/// The account files of a container whose files are on this host. It may have got new users since its start.
pub(crate) fn accounts_here(directory: &ContainerDirectory, record: &Record) -> Result<Accounts> {
    Accounts::of_layers(&[&own_files(directory, record), &record.tree])
}

/// Where the container's own files are. A limited layer of gVisor's is mounted for its supervisor alone; there the image's
/// users are known, and no others.
fn own_files(directory: &ContainerDirectory, record: &Record) -> PathBuf {
    let state = StateFile::read(directory).ok();
    match (record.runtime, state.and_then(|state| state.state.pid())) {
        (RuntimeKind::Runc, Some(pid)) => PathBuf::from(format!("/proc/{pid}/root")),
        _ => directory.path().join("upper"),
    }
}

fn build(mut process: Process, choices: ExecChoices, accounts: &Accounts) -> Result<Process> {
    let ExecChoices { args, env, cwd, user, has_terminal } = choices;
    if args.first().is_none_or(String::is_empty) {
        return Err(Error::new(ErrorKind::Invalid, "there is no command to execute"));
    }
    let mut variables = process.env().clone().unwrap_or_default();
    if let Some(user) = &user {
        let before = accounts.resolve(&process.user().uid().to_string().parse()?)?;
        let account = accounts.resolve(user)?;
        // One that the image or the request chose stays.
        let default = format!("HOME={}", before.home);
        if let Some(home) = variables.iter_mut().find(|variable| **variable == default) {
            *home = format!("HOME={}", account.home);
        }
        become_user(&mut process, &account)?;
    }
    if has_terminal && !variables.iter().chain(&env).any(|variable| variable.starts_with("TERM=")) {
        variables.push(TERMINAL_TYPE.to_owned());
    }
    for entry in env {
        super::set_variable(&mut variables, entry)?;
    }
    if let Some(cwd) = cwd {
        if !cwd.starts_with('/') {
            let text = format!("working directory {cwd:?} is not absolute: start it with /");
            return Err(Error::new(ErrorKind::Invalid, text));
        }
        process.set_cwd(cwd.into());
    }
    process.set_args(Some(args)).set_env(Some(variables)).set_terminal(Some(has_terminal));
    process.set_console_size(None);
    Ok(process)
}

fn become_user(process: &mut Process, account: &Account) -> Result<()> {
    let built = UserBuilder::default()
        .uid(account.uid)
        .gid(account.gid)
        .additional_gids(account.groups.clone())
        .build()
        .map_err(|e| Error::internal("describe a user", e))?;
    process.set_user(built);
    if let Some(sets) = process.capabilities() {
        let bounding = sets.bounding().clone().unwrap_or_default();
        let held = if account.uid == 0 { bounding.clone() } else { HashSet::new() };
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(Some(bounding)).set_permitted(Some(held.clone())).set_effective(Some(held));
        sets.set_inheritable(Some(HashSet::new())).set_ambient(Some(HashSet::new()));
        process.set_capabilities(Some(sets));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn container() -> Process {
        let text = r#"{"user":{"uid":0,"gid":0},"args":["sleep"],"cwd":"/app",
            "env":["PATH=/bin","HOME=/root","A=1"],
            "capabilities":{"bounding":["CAP_KILL"],"permitted":["CAP_KILL"],"effective":["CAP_KILL"],
                "inheritable":[],"ambient":[]}}"#;
        serde_json::from_str(text).unwrap()
    }

    fn accounts(layers: &[&Path]) -> Accounts {
        Accounts::of_layers(layers).unwrap()
    }

    fn image() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
        std::fs::write(tree.path().join("etc/passwd"), passwd).unwrap();
        tree
    }

    fn choices(args: &[&str]) -> ExecChoices {
        ExecChoices { args: args.iter().map(|text| (*text).to_owned()).collect(), ..ExecChoices::default() }
    }

    #[test]
    fn what_is_not_asked_for_is_the_containers() {
        let image = image();
        let process = build(container(), choices(&["id"]), &accounts(&[image.path()])).unwrap();
        assert_eq!(process.cwd(), Path::new("/app"));
        assert_eq!(process.env().as_ref().unwrap(), &["PATH=/bin", "HOME=/root", "A=1"]);
        assert_eq!(process.capabilities(), container().capabilities());
        assert!(build(container(), choices(&[]), &accounts(&[image.path()])).is_err());
    }

    #[test]
    fn another_user_has_a_home_and_no_capabilities() {
        let image = image();
        let asked = ExecChoices {
            user: Some("app".parse().unwrap()),
            env: vec!["A=2".to_owned()],
            has_terminal: true,
            ..choices(&["id"])
        };
        let process = build(container(), asked, &accounts(&[image.path()])).unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (1000, 1001));
        assert_eq!(process.env().as_ref().unwrap(), &["PATH=/bin", "HOME=/home/app", "A=2", "TERM=xterm"]);
        let sets = process.capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.effective().as_ref().unwrap().is_empty());
    }

    #[test]
    fn a_user_that_the_container_got_later_is_found_first() {
        let (image, upper) = (image(), image());
        std::fs::write(upper.path().join("etc/passwd"), "late:x:7:7::/late:/bin/sh\n").unwrap();
        let asked = ExecChoices { user: Some("late".parse().unwrap()), ..choices(&["id"]) };
        let process = build(container(), asked, &accounts(&[upper.path(), image.path()])).unwrap();
        assert_eq!(process.user().uid(), 7);
    }
}
