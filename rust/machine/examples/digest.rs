//! Prints the state hash of a boot every so many instructions, in virtual time: two runs, or two builds, that went the same
//! way print the same lines, and the first line that differs says where to look.
//!
//! `cargo run --release --example digest -- KERNEL INITRD EVERY COUNT`

use trapgate_machine::boot::{Decompression, Protocol};
use trapgate_machine::{ClockKind, Config, Exit, Limits, Machine, Payload};
use trapgate_x86::model::X86_64_V2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, every, count] = &args[..] else {
        return Err("usage: digest KERNEL INITRD EVERY COUNT".into());
    };
    let (kernel, initrd) = (std::fs::read(kernel)?, std::fs::read(initrd)?);
    let (every, count): (u64, u64) = (every.parse()?, count.parse()?);
    let config = Config {
        memory: 512 << 20,
        model: X86_64_V2,
        clock: ClockKind::Virtual,
        seed: 1,
        debug_console: false,
        debug_exit: false,
        epoch_seconds: 1_700_000_000,
    };
    let payload = Payload {
        kernel: &kernel,
        initrd: Some(&initrd),
        command_line: "console=ttyS0",
        protocol: Protocol::Auto,
        decompression: Decompression::Host,
    };
    let mut machine = Machine::new(&config, &payload)?;
    let mut at = 0;
    while at < count {
        at += every;
        let exit = machine.run(&Limits { count: Some(at), ..Limits::default() });
        let hash: String = machine.digest().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        println!("{} {:#018x} {hash}", machine.count(), machine.cpu().rip);
        if exit != Exit::CountReached {
            println!("{exit:x?}");
            break;
        }
    }
    Ok(())
}
