//! Compiles the `.proto` files to Rust types without an installed protoc.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["opamp/v1/anyvalue.proto", "opamp/v1/opamp.proto", "muster/bus/v1/bus.proto"];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    prost_build::Config::new()
        .btree_map(["."])
        .bytes([".muster.bus.v1", ".opamp.proto.AgentConfigFile.body"])
        .compile_fds(descriptors)?;
    Ok(())
}
