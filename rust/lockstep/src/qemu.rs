//! A QEMU that holds nothing but one processor and RAM, driven through its gdb stub.
//!
//! There is no device and no interrupt controller in it (`-machine none`), so nothing happens there by itself: what a
//! guest hears from outside, our machine hears, and [`Qemu::force`] tells QEMU the result. Its RAM is a file that both
//! processes share, which makes a whole machine's memory quick to write and to compare.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use trapgate_engine::memory::MemoryError;
use trapgate_engine::state::Vcpu;
use trapgate_machine::Machine;
use trapgate_x86::features::Features;
use trapgate_x86::insn::Bits;
use trapgate_x86::regs::cr0;

use crate::gdb::{GENERAL, Gdb, GdbError, SELECTORS, number};
use crate::instruction::{physical, read_linear};
use crate::registers::Registers;
use crate::transplant::{self, SCRATCH, STUB_CODE32, STUB_DATA, TransplantError};

const PROGRAM: &str = "qemu-system-x86_64";

/// A way through a program, as far as another executor needs it to come to the same place: where it comes to an address
/// for the first time, it can be run to; what follows is stepped.
#[derive(Clone, Debug)]
pub struct Path {
    seen: HashSet<u64>,
    /// The latest address that was new, if any was.
    reached: Option<u64>,
    /// Steps up to there.
    before: u64,
    /// Steps from there on.
    behind: u64,
}

impl Path {
    /// A path that starts at a linear address.
    pub fn new(start: u64) -> Path {
        Path { seen: HashSet::from([start]), reached: None, before: 0, behind: 0 }
    }

    /// One step, to a linear address; whether that is new.
    pub fn push(&mut self, linear: u64) -> bool {
        self.behind += 1;
        let fresh = self.seen.insert(linear);
        if fresh {
            self.reached = Some(linear);
            self.before += std::mem::take(&mut self.behind);
        }
        fresh
    }

    /// Steps in all.
    pub fn steps(&self) -> u64 {
        self.before + self.behind
    }
}

/// A processor with no encodings that ours lacks: F3 BSF is TZCNT where there is BMI1. Without a local APIC, whose registers
/// would answer where our board's do.
fn processor(cpu: &Vcpu) -> String {
    const NAMES: [(Features, &str); 22] = [
        (Features::ADX, "adx"),
        (Features::AVX, "avx"),
        (Features::AVX2, "avx2"),
        (Features::BMI1, "bmi1"),
        (Features::BMI2, "bmi2"),
        (Features::CLFLUSHOPT, "clflushopt"),
        (Features::CLWB, "clwb"),
        (Features::F16C, "f16c"),
        (Features::FMA, "fma"),
        (Features::FSGSBASE, "fsgsbase"),
        (Features::LZCNT, "abm"),
        (Features::MONITOR, "monitor"),
        (Features::MOVBE, "movbe"),
        (Features::PKU, "pku"),
        (Features::RDPID, "rdpid"),
        (Features::RDSEED, "rdseed"),
        (Features::SHA, "sha-ni"),
        (Features::SMAP, "smap"),
        (Features::SMEP, "smep"),
        (Features::SSE4A, "sse4a"),
        (Features::UMIP, "umip"),
        (Features::XSAVEOPT, "xsaveopt"),
    ];
    let mut processor =
        format!("max,apic-id=0,-apic,-la57,-mpx,-svm,-3dnow,phys-bits={}", cpu.paging().physical_bits);
    for (_, name) in NAMES.iter().filter(|(feature, _)| !cpu.features().contains(*feature)) {
        processor.push_str(",-");
        processor.push_str(name);
    }
    processor
}

/// Why QEMU does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum QemuError {
    #[error("{PROGRAM} is not installed (looked in PATH)")]
    Absent,
    #[error("{PROGRAM} cannot be started: {0}")]
    Start(#[source] io::Error),
    #[error("{PROGRAM} ended at once: {0}")]
    Ended(String),
    #[error("the file with QEMU's RAM failed: {0}")]
    Ram(#[source] io::Error),
    #[error("guest memory of {0:#x} bytes does not lie in one piece below 3 GiB")]
    Size(u64),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Gdb(#[from] GdbError),
    #[error(transparent)]
    Transplant(#[from] TransplantError),
    #[error("QEMU does not take the state over: {0}")]
    State(String),
}

impl QemuError {
    /// Whether QEMU ran somewhere else instead of stopping where it should.
    pub fn is_lost(&self) -> bool {
        matches!(self, QemuError::Gdb(GdbError::TimedOut(_)))
    }
}

/// A running QEMU; it ends with the value.
#[derive(Debug)]
pub struct Qemu {
    gdb: Gdb,
    ram: File,
    child: Child,
    _directory: tempfile::TempDir,
}

/// The program, if there is one.
pub fn find() -> Result<PathBuf, QemuError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|file| file.is_file())
        .ok_or(QemuError::Absent)
}

/// A word of memory that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryDifference {
    pub gpa: u64,
    pub ours: u64,
    pub theirs: u64,
}

/// How long QEMU may take between two stops: a stretch of at most some million instructions.
const PATIENCE: Duration = Duration::from_secs(20);
/// The most RAM that lies below the hole for devices.
const MOST_RAM: u64 = 3 << 30;

impl Qemu {
    /// Starts a QEMU with memory and processor like those of `machine`.
    pub fn like(machine: &mut Machine) -> Result<Qemu, QemuError> {
        let ram = machine.cpu().memory().len();
        if ram > MOST_RAM - SCRATCH {
            return Err(QemuError::Size(ram));
        }
        let mut qemu = Qemu::start(ram + SCRATCH, &processor(machine.cpu()))?;
        qemu.fill(machine)?;
        qemu.take_over(machine)?;
        Ok(qemu)
    }

    fn start(ram: u64, processor: &str) -> Result<Qemu, QemuError> {
        let program = find()?;
        let shared_memory = std::path::Path::new("/dev/shm");
        let directory = if shared_memory.is_dir() {
            tempfile::Builder::new().prefix("lockstep").tempdir_in(shared_memory)
        } else {
            tempfile::Builder::new().prefix("lockstep").tempdir()
        };
        let directory = directory.map_err(QemuError::Ram)?;
        let (file, socket) = (directory.path().join("ram"), directory.path().join("gdb"));
        let memory = File::create_new(&file).and_then(|file| file.set_len(ram).map(|()| file));
        drop(memory.map_err(QemuError::Ram)?);
        let ram_file = File::options().read(true).write(true).open(&file).map_err(QemuError::Ram)?;
        let backend = format!("memory-backend-file,id=ram,share=on,size={ram},mem-path={}", file.display());
        let chardev = format!("socket,id=gdb,server=on,wait=off,path={}", socket.display());
        let mut child = Command::new(program)
            .args(["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-S"])
            .args(["-machine", "none,memory-backend=ram", "-m", &format!("{}B", ram), "-object", &backend])
            .args(["-accel", "tcg", "-cpu", processor])
            .args(["-chardev", &chardev, "-gdb", "chardev:gdb"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(QemuError::Start)?;
        let gdb = connect(&mut child, &socket)
            .and_then(|stream| Gdb::new(stream).map_err(QemuError::from))
            .inspect_err(|_| end(&mut child))?;
        Ok(Qemu { gdb, ram: ram_file, child, _directory: directory })
    }

    /// Writes all RAM of `machine`.
    fn fill(&mut self, machine: &Machine) -> Result<(), QemuError> {
        let mut result = Ok(());
        machine.cpu().memory().each_page_in_use(|gpa, page| {
            if result.is_ok() {
                result = self.ram.write_all_at(page, gpa);
            }
        });
        result.map_err(QemuError::Ram)
    }

    /// From reset to the state of `machine`'s processor.
    fn take_over(&mut self, machine: &mut Machine) -> Result<(), QemuError> {
        let ram = machine.cpu().memory().len();
        let stub = transplant::stub(&machine.cpu().save(), ram)?;
        let pieces =
            std::iter::once((0, &stub.table)).chain(stub.pieces.iter().map(|(at, bytes)| (*at, bytes)));
        for (at, bytes) in pieces {
            self.ram.write_all_at(bytes, at).map_err(QemuError::Ram)?;
        }
        self.gdb.set(number::CR0, u128::from(cr0::PE | cr0::ET), 8)?;
        self.gdb.set(number::CS, STUB_CODE32.into(), 4)?;
        for register in (number::CS + 1)..number::FS_BASE {
            self.gdb.set(register, STUB_DATA.into(), 4)?;
        }
        self.gdb.set(number::RIP, stub.entry.into(), 8)?;
        self.gdb.run_to(stub.end, PATIENCE)?;
        let mut page = vec![0; stub.table.len()];
        machine.cpu().memory().read(0, &mut page)?;
        self.ram.write_all_at(&page, 0).map_err(QemuError::Ram)?;
        let bits = machine.cpu().mode().bits;
        let wanted = Registers::of(machine.cpu_mut());
        self.set_registers(&wanted)?;
        let found = self.gdb.registers()?;
        let differences = wanted.differences(&found, 0, bits);
        if differences.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = differences.iter().map(|difference| difference.to_string()).collect();
        Err(QemuError::State(lines.join(", ")))
    }

    /// Sets everything that the stub did not, in an order in which each setting is possible.
    fn set_registers(&mut self, wanted: &Registers) -> Result<(), QemuError> {
        let controls = [
            (number::CR4, wanted.cr4),
            (number::CR3, wanted.cr3),
            (number::CR0, wanted.cr0),
            (number::CR2, wanted.cr2),
        ];
        for (register, value) in controls {
            self.gdb.set(register, value.into(), 8)?;
        }
        for (register, value) in GENERAL.into_iter().zip(wanted.general) {
            self.gdb.set(register, value.into(), 8)?;
        }
        // CS last: it decides how much of the others can be set.
        let not_code = |at: &usize| *at != CODE_SEGMENT;
        for at in (0..6).filter(not_code) {
            self.gdb.set(SELECTORS[at], wanted.selectors[at].into(), 4)?;
        }
        let bases = [wanted.fs_base, wanted.gs_base, wanted.kernel_gs_base];
        for (register, base) in (number::FS_BASE..).zip(bases) {
            self.gdb.set(register, base.into(), 8)?;
        }
        self.gdb.set(number::CS, wanted.selectors[CODE_SEGMENT].into(), 4)?;
        self.gdb.set(number::RIP, wanted.rip.into(), 8)?;
        Ok(self.gdb.set(number::EFLAGS, wanted.rflags.into(), 4)?)
    }

    /// The registers as they are.
    pub fn registers(&mut self) -> Result<Registers, QemuError> {
        Ok(self.gdb.registers()?)
    }

    /// One instruction or one iteration.
    pub fn step(&mut self) -> Result<(), QemuError> {
        Ok(self.gdb.step()?)
    }

    /// Goes along a path.
    pub fn follow(&mut self, path: &Path) -> Result<(), QemuError> {
        // What is stepped over costs no more than setting a breakpoint.
        let run = path.reached.filter(|_| path.before > 2);
        if let Some(linear) = run {
            self.gdb.run_to(linear, PATIENCE)?;
        }
        let steps = if run.is_some() { path.behind } else { path.before + path.behind };
        for _ in 0..steps {
            self.gdb.step()?;
        }
        Ok(())
    }

    /// Sets what differs between `now`, QEMU's registers, and `wanted`.
    pub fn force(&mut self, now: &Registers, wanted: &Registers) -> Result<(), QemuError> {
        let mut change = |register: u8, old: u128, new: u128, size: usize| -> Result<(), QemuError> {
            if old != new {
                self.gdb.set(register, new, size)?;
            }
            Ok(())
        };
        change(number::CR2, now.cr2.into(), wanted.cr2.into(), 8)?;
        for (n, at) in SELECTORS.into_iter().enumerate() {
            change(at, now.selectors[n].into(), wanted.selectors[n].into(), 4)?;
        }
        change(number::FS_BASE, now.fs_base.into(), wanted.fs_base.into(), 8)?;
        change(number::FS_BASE + 1, now.gs_base.into(), wanted.gs_base.into(), 8)?;
        for (n, at) in GENERAL.into_iter().enumerate() {
            change(at, now.general[n].into(), wanted.general[n].into(), 8)?;
        }
        for (n, at) in (number::XMM0..).take(16).enumerate() {
            change(at, now.xmm[n], wanted.xmm[n], 16)?;
        }
        change(number::MXCSR, now.mxcsr.into(), wanted.mxcsr.into(), 4)?;
        change(number::RIP, now.rip.into(), wanted.rip.into(), 8)?;
        change(number::EFLAGS, now.rflags.into(), wanted.rflags.into(), 4)
    }

    /// Copies linear ranges of our memory, as far as they are mapped to RAM.
    pub fn copy_memory(&mut self, cpu: &Vcpu, ranges: &[(u64, u64)]) -> Result<(), QemuError> {
        for (linear, len) in ranges {
            let mut at = *linear;
            let end = linear.wrapping_add(*len);
            while at != end {
                let piece = (0x1000 - at % 0x1000).min(end.wrapping_sub(at));
                let mut bytes = vec![0; piece as usize];
                if let Some(gpa) = physical(cpu, at)
                    && read_linear(cpu, at, &mut bytes) == bytes.len()
                {
                    self.gdb.write_physical(gpa, &bytes)?;
                }
                at = at.wrapping_add(piece);
            }
        }
        Ok(())
    }

    /// Compares all RAM: the first word that differs, and how many words differ in no more than A and D flags of a page
    /// table or arithmetic flags that were pushed.
    pub fn compare_memory(
        &mut self,
        machine: &Machine,
    ) -> Result<(Option<MemoryDifference>, u64), QemuError> {
        const CHUNK: u64 = 1 << 20;
        let memory = machine.cpu().memory();
        let (mut ours, mut theirs) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        let mut soft = 0;
        let mut at = 0;
        while at < memory.len() {
            let size = (memory.len() - at).min(CHUNK) as usize;
            let (ours, theirs) = (&mut ours[..size], &mut theirs[..size]);
            memory.read(at, ours)?;
            self.ram.read_exact_at(theirs, at).map_err(QemuError::Ram)?;
            if ours != theirs {
                for (n, (one, other)) in ours.chunks_exact(8).zip(theirs.chunks_exact(8)).enumerate() {
                    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |v, byte| v << 8 | u64::from(*byte));
                    let (one, other) = (word(one), word(other));
                    if (one ^ other) & !ACCESSED_DIRTY == 0 || (one ^ other) & !ARITHMETIC == 0 {
                        soft += u64::from(one != other);
                    } else {
                        let gpa = at + 8 * n as u64;
                        return Ok((Some(MemoryDifference { gpa, ours: one, theirs: other }), soft));
                    }
                }
            }
            at += size as u64;
        }
        Ok((None, soft))
    }
}

/// Index of CS among the segment registers.
const CODE_SEGMENT: usize = 1;
/// A and D of a page-table entry.
const ACCESSED_DIRTY: u64 = 0x60;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;

impl Drop for Qemu {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits until the stub listens.
fn connect(child: &mut Child, socket: &std::path::Path) -> Result<UnixStream, QemuError> {
    let start = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(socket) {
            return Ok(stream);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let mut text = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                let _ = io::Read::read_to_string(&mut stderr, &mut text);
            }
            return Err(QemuError::Ended(format!("{status}: {}", text.trim())));
        }
        if start.elapsed() > PATIENCE {
            return Err(QemuError::Ended(format!("no gdb stub after {PATIENCE:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Linear address of the next instruction.
pub fn linear_rip(cpu: &Vcpu) -> u64 {
    match cpu.mode().bits {
        Bits::B64 => cpu.rip,
        _ => cpu.seg[CODE_SEGMENT].base.wrapping_add(cpu.rip) & u64::from(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_knows_the_last_new_place_and_the_steps_behind_it() {
        let mut path = Path::new(1);
        let fresh: Vec<bool> = [2, 3, 2, 3, 4, 1, 1].into_iter().map(|at| path.push(at)).collect();
        assert_eq!(fresh, [true, true, false, false, true, false, false]);
        assert_eq!((path.reached, path.before, path.behind, path.steps()), (Some(4), 5, 2, 7));
    }
}
