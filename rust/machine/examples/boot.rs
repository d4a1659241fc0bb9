//! Boots a kernel on the PC board with its console on standard output: the machine crate without Python.
//!
//! `cargo run --release --example boot -- KERNEL [INITRD [COMMAND LINE [EXPECTED TEXT]]]`

use std::io::Write;
use std::time::{Duration, Instant};

use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{ClockKind, Config, Exit, Limits, Machine, Payload};
use trapgate_x86::model::Model;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let kernel =
        std::fs::read(args.next().ok_or("usage: boot KERNEL [INITRD [COMMAND LINE [EXPECTED TEXT]]]")?)?;
    let initrd = args.next().map(std::fs::read).transpose()?;
    let command_line = args.next().unwrap_or_else(|| "console=ttyS0".into());
    let expect = args.next();
    let mut seen = Vec::new();
    let model = std::env::var("CPU").unwrap_or_else(|_| "x86-64-v2".into());
    let model = *Model::by_name(&model).ok_or_else(|| format!("there is no model {model}"))?;
    let clock = if std::env::var_os("REAL").is_some() { ClockKind::Real } else { ClockKind::Virtual };
    let config = Config {
        memory: 512 << 20,
        model,
        clock,
        seed: 1,
        debug_console: false,
        debug_exit: false,
        epoch_seconds: 1_700_000_000,
    };
    let payload = Payload {
        kernel: &kernel,
        initrd: initrd.as_deref(),
        command_line: &command_line,
        protocol: Protocol::Auto,
        decompression: if std::env::var_os("GUEST_DECOMPRESSION").is_some() {
            Decompression::Guest
        } else {
            Decompression::Host
        },
    };
    let mut machine = Machine::new(&config, &payload)?;
    if std::env::var_os("TRANSLATE").is_some() && !machine.set_translate(Some(Default::default())) {
        eprintln!("this host cannot run translated code");
    }
    let start = Instant::now();
    let limits = Limits { wall: Some(Duration::from_millis(50)), ..Limits::default() };
    loop {
        let exit = machine.run(&limits);
        let output = machine.console().take();
        std::io::stdout().write_all(&output)?;
        std::io::stdout().flush()?;
        seen.extend(output);
        if let Some(text) = &expect
            && seen.windows(text.len()).any(|w| w == text.as_bytes())
        {
            report("expected text", &machine, start);
            return Ok(());
        }
        if exit != Exit::WallTimePassed {
            let seconds = start.elapsed().as_secs_f64();
            let count = machine.count();
            eprintln!(
                "\n{exit:x?} after {count} instructions, {seconds:.2} s, {:.1} M/s",
                count as f64 / seconds / 1e6
            );
            return Ok(());
        }
    }
}

fn report(why: &str, machine: &Machine, start: Instant) {
    let seconds = start.elapsed().as_secs_f64();
    let count = machine.count();
    eprintln!("\n{why} after {count} instructions, {seconds:.2} s, {:.1} M/s", count as f64 / seconds / 1e6);
    if let Some(stats) = machine.translator_stats() {
        eprintln!("{stats:?}");
    }
}
