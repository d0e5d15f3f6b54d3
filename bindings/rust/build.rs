//! Links libsol_rt. `SOL_RT_LIB_DIR` names the folder that holds it; without it the linker's own folders are searched. `SOL_RT_STATIC=1` links the static
//! library, which needs the C++ runtime library of the system.

use std::env;

fn main() {
    println!("cargo:rerun-if-env-changed=SOL_RT_LIB_DIR");
    println!("cargo:rerun-if-env-changed=SOL_RT_STATIC");
    if let Ok(folder) = env::var("SOL_RT_LIB_DIR") {
        println!("cargo:rustc-link-search=native={folder}");
    }
    if env::var("SOL_RT_STATIC").is_ok_and(|value| value == "1") {
        println!("cargo:rustc-link-lib=static=sol_rt");
        let apple = env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
        println!("cargo:rustc-link-lib=dylib={}", if apple { "c++" } else { "stdc++" });
    } else {
        println!("cargo:rustc-link-lib=dylib=sol_rt");
    }
}
