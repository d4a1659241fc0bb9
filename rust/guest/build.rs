//! Compiles the guest of `source/` twice, by the C compiler that linking Rust needs anyway.
//!
//! The guest is x86-64 whatever the host is. A compiler that makes no ELF file for x86-64 is passed over; if none is left
//! the files are empty and `problem` says why. An error in the sources, with a compiler that can, stops the build. Nothing
//! in the files tells of this host: the same sources and compiler give the same bytes.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// For all sources: no library, no position, none of the registers that the kernel does not save, and no secrets of how
/// the compiler was configured. A kernel has no red zone: its own faults push below RSP.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-g0",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-nostdinc",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
];
/// The kernel is linked in the topmost 2 GiB; the user program runs where it is mapped.
const KERNEL: &[&str] = &["-fno-pic", "-mcmodel=kernel"];
const USER: &[&str] = &["-fpie"];
const LINK: &[&str] = &[
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,-s",
];

/// What both builds share, and what each has of its own.
const COMMON: &[&str] = &["work.c", "text.c"];
const PROGRAM: &str = "user.c";
const BUILDS: [(&str, &[&str]); 2] = [
    ("hardware", &["start.S", "cpu.c", "memory.c", "devices.c"]),
    (
        "xen",
        &[
            "start.S",
            "cpu.c",
            "memory.c",
            "events.c",
            "abi.c",
            "abi_crash.c",
            "abi_start.c",
            "abi_calls.c",
            "abi_cpu.c",
            "abi_vectors.c",
            "abi_nmi.c",
            "abi_tables.c",
            "abi_memory.c",
            "abi_events.c",
        ],
    ),
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=source");
    println!("cargo::rerun-if-env-changed=CC");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let source = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets it")?).join("source");
    let compiler = candidates().into_iter().find(|compiler| compiler.makes_x86_64(&out));
    for (name, files) in BUILDS {
        let file = out.join(name).with_extension("elf");
        match &compiler {
            Some(compiler) => compiler.build(&source, name, files, &out, &file)?,
            None => std::fs::write(file, [])?,
        }
    }
    let problem = match compiler {
        Some(_) => "",
        None => "no C compiler that can make x86-64 ELF files was found when trapgate was built",
    };
    std::fs::write(out.join("problem"), problem)?;
    Ok(())
}

/// A program and the arguments that come first.
struct Compiler(Vec<String>);

/// The compilers to try: the one that was asked for, the host's own, and what cross compilers are called.
fn candidates() -> Vec<Compiler> {
    let asked = std::env::var("CC").ok();
    let usual = ["cc", "x86_64-linux-gnu-gcc", "clang --target=x86_64-linux-gnu -fuse-ld=lld"];
    let commands = asked.as_deref().into_iter().chain(usual);
    let words = |command: &str| command.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    commands.map(words).filter(|words| !words.is_empty()).map(Compiler).collect()
}

impl Compiler {
    fn run(&self, arguments: impl FnOnce(&mut Command)) -> std::io::Result<Output> {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]);
        arguments(&mut command);
        command.output()
    }

    /// Tries the flags on a program that does nothing, and looks at what comes out.
    fn makes_x86_64(&self, out: &Path) -> bool {
        let (source, file) = (out.join("probe.c"), out.join("probe.elf"));
        if std::fs::write(&source, "void _start(void) { for (;;); }\n").is_err() {
            return false;
        }
        let done = self.run(|command| {
            command.args(FLAGS).args(KERNEL).args(LINK).arg(&source).arg("-o").arg(&file);
        });
        // ELF, 64 bits, little endian; the machine is at offset 18.
        done.is_ok_and(|output| output.status.success())
            && std::fs::read(&file).is_ok_and(|bytes| {
                bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(18..20) == Some(&[62, 0])
            })
    }

    fn build(
        &self,
        source: &Path,
        name: &str,
        files: &[&str],
        out: &Path,
        file: &Path,
    ) -> Result<(), Box<dyn Error>> {
        let own = files.iter().map(|file| (Path::new(name).join(file), KERNEL));
        let common = COMMON.iter().map(|file| (PathBuf::from(file), KERNEL));
        let program = std::iter::once((PathBuf::from(PROGRAM), USER));
        let mut objects = Vec::new();
        for (path, model) in own.chain(common).chain(program) {
            let object =
                out.join(format!("{name}-{}.o", path.display().to_string().replace(['/', '\\'], "-")));
            self.must(|command| {
                command.args(FLAGS).args(model).arg("-c").arg(source.join(&path)).arg("-o").arg(&object);
            })?;
            objects.push(object);
        }
        self.must(|command| {
            command.args(LINK).arg("-T").arg(source.join("link.ld")).args(&objects).arg("-o").arg(file);
        })
    }

    fn must(&self, arguments: impl FnOnce(&mut Command)) -> Result<(), Box<dyn Error>> {
        let output = self.run(arguments)?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("the guest does not compile:\n{}", String::from_utf8_lossy(&output.stderr)).into())
    }
}
