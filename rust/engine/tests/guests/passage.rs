//! What translated code does without leaving, or leaves for and comes back from at once: system calls, the clock, bases of FS
//! and GS, repetitions, instructions across pages, changes of stacks, lent vector registers. A program must do the same on
//! every engine, wherever its run is parted; where something is unusual the interpreter takes over, and nobody may notice.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::state::record::VcpuState;
use trapgate_x86::model::{Model, X86_64_V2};
use trapgate_x86::regs::{cr0, cr4, efer, rflags};

use crate::common::engines::TRANSLATORS;
use crate::common::*;

/// How programs of ring 3 say that they are over.
const OVER: u8 = 0x81;
/// Where SYSCALL leads.
const ENTRY: u64 = CODE + 0x400;
/// What the supervisor finds by GS, in a page that is its alone.
const OWN: u64 = 0xc000;

pub type Asm = CodeAssembler;
pub type Made = Result<(), IcedError>;

/// What can be seen of a run.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub events: Vec<Stop>,
    pub cpu: VcpuState,
    memory: Vec<u8>,
}

pub fn outcome(g: &mut Guest, events: Vec<Stop>) -> Outcome {
    let memory = [(DATA, 0x6000), (CODE, 0x2000), (STACK0 - 0x2000, 0x2000), (USER_CODE, 0x2000)];
    let memory = memory.into_iter().flat_map(|(at, len)| g.peek(at, len)).collect();
    Outcome { events, cpu: g.cpu().save(), memory }
}

/// Runs to the end: a halt, or the exception that says so.
pub fn finish(g: &mut Guest) -> Outcome {
    let mut events = Vec::new();
    for _ in 0..200 {
        let stop = g.go();
        events.push(stop);
        match stop {
            Stop::Event(event) if event.vector != OVER => {}
            _ => return outcome(g, events),
        }
    }
    panic!("no end at {:#x}", g.rip());
}

/// The guest on an engine by its place in [`TRANSLATORS`], or on the interpreter.
pub fn on(make: &dyn Fn() -> Guest, engine: Option<usize>) -> Guest {
    let mut g = make();
    let options = engine.map(|n| TRANSLATORS[n].1);
    assert!(g.engine.set_translate(options), "this host cannot translate");
    g
}

/// Runs on every engine to the end, and parted in two at each of the first counts.
#[track_caller]
pub fn alike(make: impl Fn() -> Guest) -> Outcome {
    let want = finish(&mut on(&make, None));
    for (n, (name, _)) in TRANSLATORS.into_iter().enumerate() {
        let got = finish(&mut on(&make, Some(n)));
        assert_eq!(got.events, want.events, "{name}");
        assert_eq!(got.cpu, want.cpu, "{name}");
        assert!(got.memory == want.memory, "{name}: memory differs");
    }
    for count in (50..130).chain((130..400).step_by(9)) {
        let run = |engine| {
            let mut g = on(&make, engine);
            let exit = g.run_until(count);
            (exit, outcome(&mut g, Vec::new()))
        };
        let (want, got) = (run(None), run(Some(0)));
        assert_eq!((got.0, &got.1.cpu), (want.0, &want.1.cpu), "parted at {count}");
        assert!(got.1.memory == want.1.memory, "parted at {count}: memory differs");
        if want.0 != Exit::Budget {
            break;
        }
    }
    want
}

/// How often translated code was left for an instruction of the interpreter's.
pub fn interpreted(make: impl Fn() -> Guest) -> u64 {
    let mut g = on(&make, Some(0));
    finish(&mut g);
    g.engine.translator_stats().expect("a translator").interpreted
}

/// A machine with system calls and a way to end programs of ring 3; GS is the supervisor's after SWAPGS.
pub fn machine() -> Guest {
    machine_of(X86_64_V2)
}

/// The same on another processor.
pub fn machine_of(model: Model) -> Guest {
    let mut g = Guest::with_model(model);
    g.change_gate(OVER, |gate| gate.access = 0xee);
    let cpu = g.cpu();
    cpu.star = 0x0018_0008 << 32;
    cpu.lstar = ENTRY;
    cpu.fmask = rflags::ALL & !rflags::ID;
    cpu.kernel_gs_base = OWN;
    cpu.cr4 |= cr4::FSGSBASE;
    g
}

/// The usual way in and out of a kernel, with `inside` in between.
pub fn kernel(g: &mut Guest, inside: impl FnOnce(&mut Asm) -> Made) {
    g.load(ENTRY, |a| {
        a.swapgs()?;
        a.mov(qword_ptr(0).gs(), rsp)?;
        a.mov(rsp, STACK0)?;
        a.push(rcx)?;
        a.push(r11)?;
        a.pushfq()?;
        a.pop(r8)?;
        a.xor(r12, r8)?;
        a.mov(r8d, cs)?;
        a.mov(r9d, ss)?;
        a.lea(r12, ptr(r12 + r8 + 8 * r9))?;
        inside(a)?;
        a.pop(r11)?;
        a.pop(rcx)?;
        a.mov(rsp, qword_ptr(0).gs())?;
        a.swapgs()?;
        a.sysretq()
    });
}

/// A program that makes system calls and mixes what comes back into R12.
pub fn caller(g: &mut Guest, rounds: u32, around: impl FnOnce(&mut Asm) -> Made) {
    g.user_program(|a| {
        let mut again = a.create_label();
        a.mov(ebx, rounds)?;
        a.set_label(&mut again)?;
        a.mov(eax, ebx)?;
        a.imul_2(eax, ebx)?;
        a.cmp(eax, 300)?;
        a.syscall()?;
        a.rol(r12, 3)?;
        a.lea(r12, ptr(r12 + r11))?;
        a.xor(r12, rcx)?;
        a.pushfq()?;
        a.pop(r13)?;
        a.add(r12, r13)?;
        a.mov(r13d, cs)?;
        a.add(r12, r13)?;
        around(a)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.int(i32::from(OVER))
    });
}

/// An exception of this vector ends the run.
pub fn ends_at(g: &mut Guest, vector: u8) {
    g.load(CODE + 0x800, |a| a.hlt());
    g.set_gate(vector, Gate { ist: 1, ..Gate::interrupt(CODE + 0x800) });
}

fn set_ac(a: &mut Asm) -> Made {
    a.pushfq()?;
    a.or(qword_ptr(rsp), rflags::AC as i32)?;
    a.popfq()
}

pub fn nothing(_: &mut Asm) -> Made {
    Ok(())
}

// ---- system calls ----

fn calls(change: impl Fn(&mut Guest)) -> Guest {
    let mut g = machine();
    kernel(&mut g, nothing);
    caller(&mut g, 30, nothing);
    change(&mut g);
    g
}

#[test]
fn system_calls_and_returns_are_exact_whatever_is_masked() {
    let flags = rflags::IF | rflags::DF | rflags::CF | rflags::OF | rflags::ID | rflags::IOPL;
    for mask in [0, rflags::IF, rflags::CF | rflags::OF, rflags::DF | rflags::ZF, rflags::ALL, !0 >> 32] {
        let make = || {
            calls(|g| {
                g.cpu().fmask = mask;
                g.flag(flags);
            })
        };
        alike(make);
        let left = interpreted(make);
        assert!(left < 30, "translated code was left {left} times for 30 system calls");
    }
}

#[test]
fn system_calls_without_sce_are_undefined() {
    let end = alike(|| {
        calls(|g| {
            g.cpu().efer &= !efer::SCE;
            ends_at(g, 6);
        })
    });
    assert_eq!(end.events, [Stop::Halted]);
}

#[test]
fn the_segments_are_those_of_star() {
    let selectors = |g: &mut Guest| g.cpu().star = 0x0053_0023 << 32;
    let end = alike(|| calls(selectors));
    let Some(Stop::Event(event)) = end.events.last() else { panic!("{:x?}", end.events) };
    assert_eq!((event.cs, event.ss), (0x63, 0x5b));
}

#[test]
fn alignment_checks_and_smap_see_ac_change() {
    for (am, smap) in [(false, false), (true, false), (false, true), (true, true)] {
        alike(|| {
            let mut g = machine();
            // The supervisor reads a page of the user's, which SMAP forbids unless AC is set.
            kernel(&mut g, |a| a.mov(r8, qword_ptr(USER_STACK - 0x800)));
            caller(&mut g, 10, |a| {
                a.pushfq()?;
                a.xor(dword_ptr(rsp), rflags::AC as i32)?;
                a.popfq()?;
                a.lea(r8, ptr(rsp - 64))?;
                a.add(r12, qword_ptr(r8))
            });
            let cpu = g.cpu();
            cpu.cr0 |= if am { cr0::AM } else { 0 };
            cpu.cr4 |= if smap { cr4::SMAP } else { 0 };
            cpu.fmask = 0;
            ends_at(&mut g, 14);
            g
        });
    }
}

#[test]
fn what_ac_allowed_ends_with_a_system_call_that_clears_it() {
    let end = alike(|| {
        let mut g = machine();
        kernel(&mut g, |a| {
            let mut stay = a.create_label();
            a.cmp(ebx, 7)?;
            a.jne(stay)?;
            a.mov(r8, qword_ptr(USER_STACK - 0x800))?;
            a.set_label(&mut stay)?;
            // The page is the supervisor's to read until AC is clear, which it is not on the way back.
            set_ac(a)?;
            a.mov(r8, qword_ptr(USER_STACK - 0x800))?;
            a.or(qword_ptr(rsp), rflags::AC as i32)
        });
        caller(&mut g, 20, nothing);
        ends_at(&mut g, 14);
        g.cpu().cr4 |= cr4::SMAP;
        g
    });
    assert_eq!((end.events, end.cpu.regs[RBX]), (vec![Stop::Halted], 7));
}

#[test]
fn flags_of_sysret_are_those_of_r11() {
    let strange = [
        rflags::TF,
        rflags::AC,
        rflags::NT,
        rflags::RF | rflags::VM,
        rflags::IOPL | rflags::ID,
        rflags::DF | rflags::OF,
        rflags::IF | rflags::TF,
    ];
    for flags in strange {
        alike(|| {
            let mut g = machine();
            kernel(&mut g, |a| a.xor(qword_ptr(rsp), flags as i32));
            caller(&mut g, 12, nothing);
            g
        });
    }
}

#[test]
fn sysret_to_an_impossible_address_faults_in_the_supervisor() {
    for target in [0x8000_0000_0000u64, 0xffff_0000_0000_0000, 0xffff_7fff_ffff_ffff, 1 << 63] {
        let make = || {
            let mut g = machine();
            // At the fifth call.
            kernel(&mut g, |a| {
                a.mov(r8, target)?;
                a.cmp(ebx, 20)?;
                a.cmove(r9, r8)?;
                a.cmovne(r9, qword_ptr(rsp + 8))?;
                a.mov(qword_ptr(rsp + 8), r9)
            });
            caller(&mut g, 24, nothing);
            ends_at(&mut g, 13);
            g
        };
        let end = alike(make);
        assert_eq!(end.events.len(), 1);
    }
}

#[test]
fn interrupts_come_at_the_first_instruction_that_allows_them() {
    for count in 60..130 {
        let make = || {
            let g = calls(|g| g.flag(rflags::IF));
            g.at_count(count, Line::Vector(0x41));
            g.at_count(count + 1, Line::Vector(0x42));
            g
        };
        let end = alike_in_one_go(make);
        assert_eq!(end.events.len(), 3, "{:x?}", end.events);
    }
}

/// As [`alike`], without the parts.
#[track_caller]
pub fn alike_in_one_go(make: impl Fn() -> Guest) -> Outcome {
    let want = finish(&mut on(&make, None));
    for (n, (name, _)) in TRANSLATORS.into_iter().enumerate() {
        assert_eq!(finish(&mut on(&make, Some(n))), want, "{name}");
    }
    want
}

#[test]
fn stops_from_outside_are_taken_between_system_calls() {
    let mut g = on(&|| calls(|g| g.flag(rflags::IF)), Some(0));
    g.stop();
    assert_eq!(g.run_until(1_000), Exit::Requested);
    finish(&mut g);
}

#[test]
fn a_handler_that_faults_for_ever_lets_the_caller_look_around() {
    let make = || {
        let mut g = machine();
        g.set_gate(6, Gate { ist: 1, ..Gate::interrupt(CODE + 0x800) });
        g.poke(CODE + 0x800, &[0x0f, 0x0b]);
        g.program(|a| a.ud2());
        g
    };
    for engine in [None, Some(0)] {
        let mut g = on(&make, engine);
        assert_eq!((g.engine.run(10_000), g.count()), (Exit::Budget, 0));
    }
}

// ---- the clock and the bases ----

#[test]
fn the_clock_shows_the_count_of_its_own_instruction() {
    alike(|| {
        let mut g = machine();
        let read = |a: &mut Asm| {
            a.movq(xmm1, r12)?;
            a.rdtsc()?;
            a.movq(r12, xmm1)?;
            a.lea(r12, ptr(r12 + 4 * rax))?;
            a.add(r12, rdx)
        };
        kernel(&mut g, read);
        caller(&mut g, 20, read);
        g.cpu().tsc_adjust = 0x1234_5678_9abc;
        g
    });
}

#[test]
fn the_clock_may_be_closed_to_programs() {
    let end = alike(|| {
        let mut g = machine();
        kernel(&mut g, |a| a.rdtsc());
        ends_at(&mut g, 13);
        caller(&mut g, 16, |a| a.rdtsc());
        g.cpu().cr4 |= cr4::TSD;
        g
    });
    assert_eq!(end.events, [Stop::Halted]);
}

#[test]
fn bases_are_read_and_written_in_place() {
    let write = |a: &mut Asm| {
        a.mov(rax, 0x7fff_1234_5678u64)?;
        a.add(rax, rbx)?;
        a.wrfsbase(rax)?;
        a.wrgsbase(ebx)?;
        a.rdfsbase(r9)?;
        a.rdgsbase(r10)?;
        a.rdfsbase(ecx)?;
        a.wrfsbase(r9d)?;
        a.rdfsbase(r11)?;
        a.lea(r12, ptr(r12 + r9))?;
        a.lea(r12, ptr(r12 + 2 * r10))?;
        a.lea(r12, ptr(r12 + 4 * r11))?;
        a.add(r12, rcx)
    };
    let make = |on: bool| {
        let mut g = machine();
        kernel(&mut g, nothing);
        caller(&mut g, 20, write);
        g.cpu().cr4 ^= if on { 0 } else { cr4::FSGSBASE };
        ends_at(&mut g, 6);
        g
    };
    assert_eq!(alike(|| make(true)).events.len(), 1);
    assert_eq!(alike(|| make(false)).events, [Stop::Halted]);
}

#[test]
fn bases_must_be_canonical() {
    for base in [0x8000_0000_0000u64, 0xffff_7fff_ffff_ffff, 1 << 62] {
        let end = alike(|| {
            let mut g = machine();
            kernel(&mut g, nothing);
            caller(&mut g, 20, |a| {
                a.xor(eax, eax)?;
                a.mov(r9, base)?;
                a.cmp(ebx, 5)?;
                a.cmove(rax, r9)?;
                a.wrfsbase(rax)
            });
            ends_at(&mut g, 13);
            g
        });
        assert_eq!(end.events, [Stop::Halted], "{base:#x}");
    }
}

#[test]
fn the_model_of_these_guests_has_what_they_use() {
    use trapgate_x86::features::Features;
    assert!(X86_64_V2.features.contains(Features::FSGSBASE));
}

#[test]
fn smap_keeps_the_processor_from_tables_in_pages_of_the_users_whatever_ac_says() {
    for ac in [false, true] {
        let mut g = machine();
        g.poke(DATA, &g.peek(IDT, 0x1000));
        g.program(|a| {
            if ac {
                set_ac(a)?;
                a.mov(rax, qword_ptr(DATA))?;
            }
            a.int3()
        });
        g.cpu().idtr.base = DATA;
        g.cpu().cr4 |= cr4::SMAP;
        assert!(matches!(g.go(), Stop::Exit(Exit::TripleFault { .. })), "AC {ac}");
    }
}
