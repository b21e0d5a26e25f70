//! Compiles the API's .proto without needing `protoc`.

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
    Ok(())
}
