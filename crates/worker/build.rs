//! Compiles the API's .proto without needing `protoc`, and puts the guest's init into the program.

use std::path::{Path, PathBuf};
use std::{env, fs};

use sha2::{Digest, Sha256};

/// Where `cargo xtask guest` puts the guest's init.
const VM_INIT: &str = "../../target/guest/beta9-vm-init";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protos = ["beta9/worker/v1/worker.proto", "beta9/worker/v1/volume.proto"];
    let root = "../../proto";
    for proto in protos {
        println!("cargo:rerun-if-changed={root}/{proto}");
    }
    let descriptors = protox::compile(protos, [root])?;
    // What derives no Debug must say how it is shown: see `api.rs`.
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(["beta9.worker.v1.RegistryCredentials"])
        .compile_fds(descriptors)?;
    vm_init(Path::new(&env::var("OUT_DIR")?))
}

/// Writes `vm_init.rs`: the init of `BETA9_VM_INIT`, or of the last `cargo xtask guest`, or none.
fn vm_init(out: &Path) -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-env-changed=BETA9_VM_INIT");
    let named = env::var_os("BETA9_VM_INIT").filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = named.clone().unwrap_or_else(|| Path::new(&env!("CARGO_MANIFEST_DIR")).join(VM_INIT));
    println!("cargo:rerun-if-changed={}", path.display());
    let program = match fs::read(&path) {
        Ok(program) => Some(program),
        Err(error) if named.is_some() => return Err(format!("{}: {error}", path.display()).into()),
        Err(_) => None,
    };
    let text = match program {
        Some(program) => {
            let copy = out.join("beta9-vm-init");
            fs::write(&copy, &program)?;
            let digest: String = Sha256::digest(&program).iter().map(|byte| format!("{byte:02x}")).collect();
            format!(
                "const EMBEDDED: Option<Embedded> = Some(Embedded {{ program: include_bytes!({copy:?}), digest: \"{digest}\" }});\n"
            )
        }
        None => "const EMBEDDED: Option<Embedded> = None;\n".to_owned(),
    };
    let file = out.join("vm_init.rs");
    // A file that is written anew has everything compiled anew.
    if fs::read_to_string(&file).ok().as_deref() != Some(&text) {
        fs::write(file, text)?;
    }
    Ok(())
}
