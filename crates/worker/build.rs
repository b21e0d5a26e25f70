//! Compiles the API's .proto without needing `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "beta9/worker/v1/worker.proto";
    let root = "../../proto";
    println!("cargo:rerun-if-changed={root}/{proto}");
    let descriptors = protox::compile([proto], [root])?;
    // What derives no Debug must say how it is shown: see `api.rs`.
    tonic_prost_build::configure()
        .build_transport(false)
        .skip_debug(["beta9.worker.v1.RegistryCredentials"])
        .compile_fds(descriptors)?;
    Ok(())
}
