//! The first file system of a guest: an init, and the modules of a kernel that has its drivers in them.
//!
//! ```text
//! /init  /dev/console  /dev/null                  one archive
//! /modules/*.ko  /modules/order                   another behind it: the kernel unpacks one after the other
//! ```

use std::collections::BTreeSet;
use std::io;

use crate::cpio::Archive;
use crate::error::Result;
use crate::modules::{Purpose, read_module};

/// An initramfs that starts `init`, with the modules of a [`module_archive`].
pub fn initramfs(init: &[u8], modules: Option<&[u8]>) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::with_capacity(init.len() + (4 << 10)));
    archive.directory("dev")?;
    // Without these two the C library has nothing to open descriptors 0 to 2 on.
    archive.character_device("dev/console", 5, 1)?;
    archive.character_device("dev/null", 1, 3)?;
    archive.file("init", 0o755, init)?;
    let mut packed = archive.finish()?;
    packed.extend_from_slice(modules.unwrap_or_default());
    Ok(packed)
}

/// An archive of modules and the order to load them in.
pub fn module_archive(purposes: &[Purpose]) -> Result<Vec<u8>> {
    let (mut order, mut files) = (String::new(), BTreeSet::new());
    for Purpose { name, files: needed } in purposes {
        let names = needed.iter().map(|file| format!(" {}", file.name));
        order.push_str(&format!("{name}:{}\n", names.collect::<String>()));
        files.extend(needed);
    }
    let failed =
        |e: io::Error| crate::Error::caused(crate::ErrorKind::Invalid, "pack the kernel's modules", e);
    let mut archive = Archive::new(Vec::new());
    archive.directory("modules").map_err(failed)?;
    for file in files {
        archive.file(&format!("modules/{}", file.name), 0o644, &read_module(&file.path)?).map_err(failed)?;
    }
    archive.file("modules/order", 0o644, order.as_bytes()).map_err(failed)?;
    archive.finish().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::ModuleFile;

    #[test]
    fn modules_that_several_purposes_share_are_packed_once_and_ordered_for_each() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("\x7fELF {name}")).unwrap();
            ModuleFile { name: name.to_owned(), path }
        };
        let (shared, one) = (file("shared.ko"), file("one.ko"));
        let purposes = [
            Purpose { name: "one", files: vec![shared.clone(), one] },
            Purpose { name: "two", files: vec![shared] },
            Purpose { name: "none", files: Vec::new() },
        ];
        let modules = module_archive(&purposes).unwrap();
        let text = String::from_utf8_lossy(&modules).into_owned();
        assert_eq!(text.matches("modules/shared.ko").count(), 1);
        assert!(text.contains("one: shared.ko one.ko\ntwo: shared.ko\nnone:\n"));
        let both = initramfs(b"INIT", Some(&modules)).unwrap();
        assert!(both.ends_with(&modules));
        assert_eq!((both.len() - modules.len()) % 512, 0);
    }
}
