//! `lockstep hash|paranoid|engines|qemu`: where do two runs of one guest part?

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use trapgate_engine::translate::TranslateOptions;
use trapgate_lockstep::compare::{self, Every, Summary};
use trapgate_lockstep::guest::{Guest, read};
use trapgate_lockstep::{hash, paranoid};
use trapgate_x86::insn::Bits;
use trapgate_x86::model::{Model, X86_64_V2};

const USAGE: &str = "\
usage: lockstep hash|paranoid|engines|qemu [OPTION]...

  hash      print a hash of the whole state every so many instructions, in virtual time
  paranoid  compare a normal run with one in which the interpreter keeps nothing from one instruction to the next
  engines   compare the interpreter with the translator
  qemu      compare with qemu-system-x86_64 (TCG) through its gdb stub

The guest is debian-12 from the image cache unless one is given:
  --kernel FILE     bzImage, ELF or multiboot kernel
  --initrd FILE
  --append TEXT     command line
  --code HEX        bare-metal 64-bit code at 1 MiB instead of a kernel; --bits 32 for 32-bit code
  --memory SIZE     as 256M
  --cpu MODEL       x86-64-v2, x86-64-v3 or host                              (x86-64-v2)

Counts of instructions, with K, M or G:
  --start N         run alone up to N, then begin                            (0)
  --end N           stop at N                                                (1M)
  --every N         hash: a line each N                                      (1M)
                    paranoid, engines: compare processors each N             (1)
                    qemu: compare each N, or `instruction`, or `block`       (10K)
  --hash-every N    paranoid, engines: compare everything each N                      (100K)
  --memory-every N  qemu: compare all memory each N                          (1M)
  --longest N       engines: instructions of a unit at most                  (48)
  --link yes|no     engines: jumps lead straight from unit to unit           (yes)
  --elide yes|no    engines: one check stands for several accesses           (yes)
  --keep yes|no     engines: pages and targets are kept                      (yes)
  --paranoid yes|no engines: all of these short cuts are taken away          (no)
  --paging NAME     engines: walk, or shadow: with shadow page tables        (walk)
  --skip yes|no     qemu: run ours alone where the guest only polls devices  (yes)

Exit status: 0 no difference, 1 a difference, 2 an error.";

type AnyError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("lockstep: {error}");
            ExitCode::from(2)
        }
    }
}

/// The command line's options by name.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, AnyError> {
        const KNOWN: [&str; 19] = [
            "cpu",
            "kernel",
            "initrd",
            "append",
            "code",
            "bits",
            "memory",
            "start",
            "end",
            "every",
            "hash-every",
            "memory-every",
            "skip",
            "longest",
            "link",
            "elide",
            "keep",
            "paranoid",
            "paging",
        ];
        let mut options = Vec::new();
        while let Some(arg) = args.next() {
            let name = arg.strip_prefix("--").filter(|name| KNOWN.contains(name));
            let name = name.ok_or_else(|| format!("unknown option {arg}\n\n{USAGE}"))?;
            let value = args.next().ok_or_else(|| format!("--{name} needs a value"))?;
            options.push((name.to_owned(), value));
        }
        Ok(Options(options))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, AnyError> {
        self.get(name).map_or(Ok(default), |text| number(text, 1000))
    }
}

/// A number with an optional K, M or G of the given thousand.
fn number(text: &str, thousand: u64) -> Result<u64, AnyError> {
    let scale = match text.as_bytes().last() {
        Some(b'K' | b'k') => thousand,
        Some(b'M') => thousand.pow(2),
        Some(b'G') => thousand.pow(3),
        _ => 1,
    };
    let digits = if scale == 1 { text } else { &text[..text.len() - 1] };
    let value = digits.parse::<u64>().ok().and_then(|value| value.checked_mul(scale));
    value.ok_or_else(|| format!("{text} is not a number such as 500000, 500K or 2M").into())
}

fn guest(options: &Options) -> Result<Guest, AnyError> {
    let mut guest = match (options.get("code"), options.get("kernel")) {
        (Some(code), _) => {
            let digits: Vec<u8> = code.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let pairs = digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair)?, 16).map_err(AnyError::from));
            let bits = if options.get("bits") == Some("32") { Bits::B32 } else { Bits::B64 };
            Guest::code(bits, &pairs.collect::<Result<Vec<u8>, AnyError>>()?)
        }
        (None, Some(kernel)) => Guest {
            kernel: read(Path::new(kernel))?,
            initrd: options.get("initrd").map(|file| read(Path::new(file))).transpose()?,
            command_line: "console=ttyS0".into(),
            memory: 256 << 20,
            model: X86_64_V2,
        },
        (None, None) => Guest::debian()?,
    };
    if let Some(line) = options.get("append") {
        guest.command_line = line.into();
    }
    if let Some(name) = options.get("cpu") {
        guest.model = *Model::by_name(name).ok_or_else(|| format!("there is no model {name}"))?;
    }
    if let Some(size) = options.get("memory") {
        guest.memory = number(size, 1024)?;
    }
    Ok(guest)
}

/// Runs the command; false if there was a difference.
fn run() -> Result<bool, AnyError> {
    let mut args = std::env::args().skip(1);
    let Some(command) = args.next() else { return Err(USAGE.into()) };
    if matches!(command.as_str(), "-h" | "--help" | "help") {
        println!("{USAGE}");
        return Ok(true);
    }
    let options = Options::parse(args)?;
    let (start, end) = (options.number("start", 0)?, options.number("end", 1_000_000)?);
    match command.as_str() {
        "hash" => {
            let mut machine = guest(&options)?.machine()?;
            hash::run(&mut machine, options.number("every", 1_000_000)?, end, |line| println!("{line}"));
            Ok(true)
        }
        "paranoid" | "engines" => {
            let against = if command == "paranoid" {
                paranoid::Against::Paranoid
            } else {
                let usual = if options.get("paranoid") == Some("yes") {
                    TranslateOptions::PARANOID
                } else {
                    TranslateOptions::default()
                };
                let yes = |name: &str, usual: bool| options.get(name).map_or(usual, |said| said != "no");
                let shadows = match options.get("paging") {
                    None | Some("walk") => false,
                    Some("shadow") => true,
                    Some(other) => return Err(format!("--paging {other}: it is walk or shadow").into()),
                };
                let with = TranslateOptions {
                    longest: options.number("longest", usual.longest.into())? as u32,
                    link: yes("link", usual.link),
                    elide: yes("elide", usual.elide),
                    keep: yes("keep", usual.keep),
                    ..usual
                };
                match shadows {
                    false => paranoid::Against::Translated(with),
                    true => paranoid::Against::Shadowed(with),
                }
            };
            let plan = paranoid::Plan {
                against,
                start,
                end,
                every: options.number("every", 1)?,
                hash_every: options.number("hash-every", 100_000)?,
            };
            Ok(report_paranoid(&paranoid::compare(&guest(&options)?, &plan)?))
        }
        "qemu" => {
            let every = match options.get("every") {
                Some("instruction" | "1") => Every::Instruction,
                Some("block") => Every::Block,
                _ => Every::Count(options.number("every", 10_000)?),
            };
            let memory_every = options.number("memory-every", 1_000_000)?;
            let skip = options.get("skip") != Some("no");
            let plan = compare::Plan { start, end, every, memory_every, skip };
            let mut shown = Instant::now();
            let verdict = compare::compare(&guest(&options)?, &plan, |summary| {
                if shown.elapsed() > Duration::from_secs(2) {
                    shown = Instant::now();
                    eprintln!("{}", line(summary));
                }
            })?;
            Ok(report_qemu(&verdict))
        }
        _ => Err(format!("unknown command {command}\n\n{USAGE}").into()),
    }
}

fn line(summary: &Summary) -> String {
    format!(
        "equal at {}: compared {} times, results given {} times, {} instructions skipped",
        summary.count, summary.compared, summary.given, summary.skipped
    )
}

fn report_paranoid(verdict: &paranoid::Verdict) -> bool {
    match verdict {
        paranoid::Verdict::Same { count, exit } => {
            let end = exit.map_or(String::new(), |exit| format!(", where the machine ended with {exit:x?}"));
            println!("equal up to {count}{end}");
            true
        }
        paranoid::Verdict::Differs(divergence) => {
            println!("{divergence}");
            false
        }
    }
}

fn report_qemu(verdict: &compare::Verdict) -> bool {
    match verdict {
        compare::Verdict::Same(summary) => {
            println!("{}", line(summary));
            for note in &summary.unexplained {
                println!("different at full speed and equal in steps, {note}");
            }
            if summary.soft > 0 {
                println!("{} words of memory differ in A, D or arithmetic flags only", summary.soft);
            }
            if let Some(exit) = summary.exit {
                println!("the machine ended with {exit:x?}");
            }
            true
        }
        compare::Verdict::Differs(divergence) => {
            println!("{divergence}");
            false
        }
    }
}
