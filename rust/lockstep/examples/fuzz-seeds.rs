//! Writes the seeds of the fuzz targets where cargo-fuzz looks for them: a folder for each target in the one named.

use std::path::PathBuf;

use trapgate_lockstep::fuzz::{Noise, TARGETS};

fn main() -> std::io::Result<()> {
    let corpus = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("fuzz/corpus"), PathBuf::from);
    for target in TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        let mut seeds = (target.seeds)();
        if seeds.is_empty() {
            seeds.extend((0..32).map(|n| Noise(n).bytes(400)));
        }
        for (n, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:02}")), seed)?;
        }
    }
    Ok(())
}
