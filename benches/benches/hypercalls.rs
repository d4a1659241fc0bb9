//! What hypercalls cost in the translator, from SYSCALL to the next instruction of the guest: a small kernel makes each in a
//! loop, and what the loop costs without it is taken off. `cargo bench -p trapgate-benches --bench hypercalls`.

use std::time::Instant;

use iced_x86::code_asm::*;
use trapgate_lockstep::guest::para_kernel;
use trapgate_machine::{ClockKind, Config, Exit, Limits, Machine, ParaPayload};
use trapgate_x86::model::X86_64_V2;

/// Where PFN 0 is mapped, where the code starts, and where the arguments of calls are.
const BASE: u64 = 0xffff_ffff_8000_0000;
const CODE: u64 = BASE + 0x1_0000;
const DATA: u64 = BASE + 0x1_1000;
/// Rounds of a measurement, and how often it is made.
const ROUNDS: u64 = 300_000;
const RUNS: usize = 7;

/// A call: its number, up to three arguments, and how many elements it has.
struct Call {
    name: &'static str,
    number: u32,
    args: [u64; 3],
    elements: u64,
}

fn call(name: &'static str, number: u32, args: [u64; 3]) -> Call {
    Call { name, number, args, elements: 1 }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A loop of `ROUNDS` rounds around what `body` makes.
fn program(body: impl Fn(&mut CodeAssembler) -> std::result::Result<(), IcedError>) -> Result<Vec<u8>> {
    let mut a = CodeAssembler::new(64)?;
    let mut top = a.create_label();
    a.mov(rbx, ROUNDS)?;
    a.set_label(&mut top)?;
    body(&mut a)?;
    a.dec(rbx)?;
    a.jnz(top)?;
    // Crashes the domain, which ends the run.
    a.ud2()?;
    Ok(a.assemble(CODE)?)
}

fn arguments(a: &mut CodeAssembler, call: &Call) -> std::result::Result<(), IcedError> {
    a.mov(eax, call.number)?;
    a.mov(rdi, call.args[0])?;
    a.mov(rsi, call.args[1])?;
    a.mov(rdx, call.args[2])?;
    a.mov(r10d, 0x7ff0)
}

/// Nanoseconds of a round: the best of some runs.
fn measure(code: &[u8], prepare: impl Fn(&Machine)) -> Result<f64> {
    let mut image = code.to_vec();
    image.resize(0x1_0000, 0);
    let kernel = para_kernel(&image);
    let config = Config {
        memory: 8 << 20,
        model: X86_64_V2,
        clock: ClockKind::Real,
        seed: 1,
        debug_console: false,
        debug_exit: false,
        epoch_seconds: 0,
    };
    let payload =
        ParaPayload { kernel: &kernel, initrd: None, command_line: "", domid: 1, maximum_memory: 0 };
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let mut machine = Machine::new_para(&config, &payload)?;
        machine.set_translate(Some(Default::default()));
        prepare(&machine);
        let start = Instant::now();
        let exit = machine.run(&Limits::default());
        let spent = start.elapsed().as_nanos() as f64 / ROUNDS as f64;
        if exit != Exit::Crashed {
            return Err(format!("the guest ended with {exit:?}").into());
        }
        if machine.count() < ROUNDS {
            return Err("the guest crashed before it was done".into());
        }
        best = best.min(spent);
    }
    Ok(best)
}

/// Fills the page of arguments: elements of mmu_update that write what is there already, and a multicall's entries.
fn fill(machine: &Machine) {
    let Some(domain) = machine.domain() else { return };
    let memory = domain.memory();
    let first = domain.layout.ram.start;
    let put = |va: u64, value: u64| {
        let written = memory.write(first * 4096 + (va - BASE), &value.to_le_bytes());
        debug_assert!(written.is_ok());
    };
    // The first L1 of the first mapping: behind L4, L3 and L2, which begin behind image and three pages.
    let root = domain.paging().kernel_root(0).map_or(0, |root| root.0);
    for i in 0..64 {
        let entry = (root + 3) * 4096 + (0x200 + i) % 512 * 8 / 512 * 512 + i * 8;
        let mut old = [0; 8];
        let read = memory.read(entry, &mut old);
        debug_assert!(read.is_ok());
        put(DATA + i * 16, entry);
        put(DATA + i * 16 + 8, u64::from_le_bytes(old));
        let at = DATA + 0x1000 + i * 64;
        put(at, 3);
        put(at + 16, 0xe02b);
        put(at + 24, DATA + 0x8000);
    }
    put(DATA + 0x3000, 0);
}

/// The frame of an iret that stays in the kernel.
fn frame(a: &mut CodeAssembler, next: CodeLabel) -> std::result::Result<(), IcedError> {
    a.mov(rsp, DATA + 0x9000)?;
    for word in [0xe02b, 0] {
        a.mov(ecx, word)?;
        a.push(rcx)?;
    }
    a.pushfq()?;
    a.mov(ecx, 0xe030)?;
    a.push(rcx)?;
    a.lea(rcx, qword_ptr(next))?;
    a.push(rcx)?;
    for _ in 0..4 {
        a.push(0)?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let calls = [
        call("xen_version", 17, [0, 0, 0]),
        call("stack_switch", 3, [0xe02b, DATA + 0x8000, 0]),
        call("set_segment_base", 25, [0, 0, 0]),
        call("fpu_taskswitch", 5, [0, 0, 0]),
        call("event_channel_op unmask", 32, [9, DATA + 0x3008, 0]),
        call("set_timer_op", 15, [u64::MAX >> 1, 0, 0]),
        Call { name: "mmu_update", number: 1, args: [DATA, 1, 0], elements: 1 },
        Call { name: "mmu_update of 64", number: 1, args: [DATA, 64, 0], elements: 64 },
        Call { name: "multicall of 64", number: 13, args: [DATA + 0x1000, 64, 0], elements: 64 },
        call("update_va_mapping", 14, [BASE + 0x30_0000, 0, 0]),
    ];
    println!("{:24} {:>8} {:>12}", "call", "ns", "ns/element");
    for each in &calls {
        let empty = program(|a| arguments(a, each))?;
        let full = program(|a| {
            arguments(a, each)?;
            a.syscall()
        })?;
        let spent = measure(&full, fill)? - measure(&empty, fill)?;
        let more =
            if each.elements > 1 { format!("{:12.1}", spent / each.elements as f64) } else { String::new() };
        println!("{:24} {spent:8.1} {more}", each.name);
    }
    let empty = program(|a| {
        let mut next = a.create_label();
        frame(a, next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    })?;
    let full = program(|a| {
        let mut next = a.create_label();
        frame(a, next)?;
        a.mov(eax, 23)?;
        a.syscall()?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    })?;
    let spent = measure(&full, fill)? - measure(&empty, fill)?;
    println!("{:24} {spent:8.1}", "iret");
    Ok(())
}
