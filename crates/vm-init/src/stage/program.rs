//! Finding the container's program and becoming it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;

use beta9_wire::{Process, StartFailure};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;

use super::paths;
use crate::failure::{Context, Failure, Result};

/// Where a program is looked for if the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the working directory in the root where the image has none.
pub(super) fn make_working_directory(root: &OwnedFd, path: &str) -> Result<()> {
    if !path.starts_with('/') {
        return Err(Failure::refused(format!("a working directory that is not absolute: {path:?}")));
    }
    paths::make_directories(root, path).map(drop).context(|| format!("make the working directory {path}"))
}

/// Becomes the container's program; returns only when there is none to become.
pub(super) fn execute(process: &Process) -> Result<Infallible> {
    let program = process.args.first().ok_or_else(|| Failure::refused("no program to execute"))?;
    let path = find(program, &process.env)?;
    let strings = |list: &[String]| -> Result<Vec<CString>> {
        let strings = list.iter().map(|text| CString::new(text.as_str()));
        strings.collect::<std::result::Result<_, _>>().context(|| "arguments and environment")
    };
    let (arguments, environment) = (strings(&process.args)?, strings(&process.env)?);
    let path = CString::new(path).context(|| "the program's path")?;
    let (path, arguments) = if process.init {
        // What it is about to run was found above, so a mistake is the same failure with and without it.
        let before = [c"beta9-init".to_owned(), c"--".to_owned()];
        (c"/proc/self/exe".to_owned(), before.into_iter().chain(arguments).collect())
    } else {
        (path, arguments)
    };
    beta9_sys::signals::reset_all();
    let error = beta9_sys::program::execute(&path, &arguments, &environment);
    Err(failure(program, &error))
}

/// The exit code that a failed exec means: docker's, which is a shell's.
fn failure(program: &str, error: &std::io::Error) -> Failure {
    let kind = match Errno::from_io_error(error) {
        // Also where a script's interpreter is missing.
        Some(Errno::NOENT | Errno::NOTDIR) => StartFailure::NotFound,
        _ => StartFailure::CannotExecute,
    };
    Failure::new(kind, format!("execute {program:?}: {error}"))
}

/// The program's file: itself if it has a slash, else the first one along `PATH` that may be executed.
fn find(program: &str, environment: &[String]) -> Result<String> {
    if program.contains('/') {
        if fs::metadata(program).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(Failure::new(
                StartFailure::CannotExecute,
                format!("execute {program:?}: it is a directory"),
            ));
        }
        return Ok(program.to_owned());
    }
    // Of several the last one counts, as for the process itself.
    let path = environment.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
    let directories = path.unwrap_or(DEFAULT_PATH).split(':').filter(|directory| !directory.is_empty());
    let executable = |path: &String| {
        let file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        file && accessat(CWD, path.as_str(), Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    };
    let mut candidates = directories.map(|directory| format!("{directory}/{program}"));
    match candidates.find(executable) {
        Some(found) if !program.is_empty() => Ok(found),
        _ => Err(Failure::new(
            StartFailure::NotFound,
            format!("execute {program:?}: no executable file of that name in PATH"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_first_executable_file_along_path_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, mode: u32| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        file("a/tool", 0o644);
        file("b/tool", 0o755);
        fs::create_dir(directory.path().join("a/other")).unwrap();
        let path = format!("PATH={0}/a:{0}/b:", directory.path().display());
        let environment = ["PATH=/nowhere".to_owned(), path];
        let found = find("tool", &environment).unwrap();
        assert_eq!(found, format!("{}/b/tool", directory.path().display()));
        for missing in ["other", "", "tool2"] {
            assert_eq!(find(missing, &environment).unwrap_err().kind, StartFailure::NotFound);
        }
        let slashed = find(&format!("{}/a/other", directory.path().display()), &environment);
        assert_eq!(slashed.unwrap_err().kind, StartFailure::CannotExecute);
    }

    #[test]
    fn exit_codes_follow_the_kernel_s_answer() {
        let kind = |errno: Errno| failure("x", &errno.into()).kind;
        assert_eq!(kind(Errno::NOENT), StartFailure::NotFound);
        assert_eq!(kind(Errno::ACCESS), StartFailure::CannotExecute);
        assert_eq!(kind(Errno::NOEXEC), StartFailure::CannotExecute);
    }
}
