//! What a 32-bit guest's hardware tasks and call gates, which are not run, do before a switch would begin: their checks
//! are faults of the guest (SDM vol. 3, 5.8 and 7.3; vol. 2, INT n, CALL, JMP and IRET).

use iced_x86::code_asm::*;
use trapgate_engine::{Exit, Unsupported};
use trapgate_x86::regs::rflags;

use crate::common::*;

/// The descriptor under test and where the far pointer to it lies.
const GATE: u16 = FREE;
const OTHER: u16 = FREE + 8;
const POINTER: u64 = USER + 0x100;
/// An available 32-bit TSS, a busy one.
const FREE_TSS: u64 = 0x0000_8900_0000_0067 | (TSS + 0x100) << 16;
const BUSY_TSS: u64 = FREE_TSS | 1 << 41;

fn task_gate(selector: u16, access: u8) -> u64 {
    u64::from(selector) << 16 | u64::from(access) << 40
}

fn call_gate(selector: u16, access: u8) -> u64 {
    task_gate(selector, access) | CODE & 0xffff | (CODE >> 16) << 48
}

/// A guest in 32-bit code of ring 3 or 0 that runs one instruction.
fn at_ring(ring: u8, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> (Guest, Code) {
    let mut g = Guest::protected();
    g.put::<u32>(POINTER, 0xdead_beef);
    g.put::<u16>(POINTER + 4, GATE | u16::from(ring));
    if ring == 3 {
        g.set_ring(USER32, DATA3, USER_STACK);
    }
    let code = g.program(f);
    (g, code)
}

/// What is to come: a fault with its error code, or the end of the run.
#[derive(Clone, Copy, Debug)]
enum Ends {
    Fault(u8, u64),
    Run(Unsupported),
}

#[track_caller]
fn ends_in(mut g: Guest, code: &Code, ends: Ends, what: &str) {
    match (g.go(), ends) {
        (Stop::Event(e), Ends::Fault(vector, error)) => {
            assert_eq!((e.vector, e.error, e.rip), (vector, Some(error), code.start), "{what}");
        }
        (Stop::Exit(Exit::Unsupported { what: got, rip }), Ends::Run(expected)) => {
            assert_eq!((got, rip), (expected, code.start), "{what}");
        }
        (got, _) => panic!("{what}: {got:x?} instead of {ends:?}"),
    }
}

const TASK_SWITCH: Ends = Ends::Run(Unsupported::TaskSwitch);

#[test]
fn int_through_a_task_gate_is_checked_first() {
    let (vector, idt) = (0x40, u64::from(0x40u8) << 3 | 2);
    let other = u64::from(OTHER);
    let cases = [
        ("the gate's DPL is inner", 0x85, OTHER, FREE_TSS, Ends::Fault(13, idt)),
        ("the gate is absent", 0x65, OTHER, FREE_TSS, Ends::Fault(11, idt)),
        ("a null task", 0xe5, 0, FREE_TSS, Ends::Fault(13, 0)),
        ("a task of the local table", 0xe5, OTHER | 4, FREE_TSS, Ends::Fault(13, other | 4)),
        ("a task beyond the table", 0xe5, 0x100, FREE_TSS, Ends::Fault(13, 0x100)),
        ("a busy task", 0xe5, OTHER, BUSY_TSS, Ends::Fault(13, other)),
        ("data", 0xe5, OTHER, 0x00cf_9300_0000_ffff, Ends::Fault(13, other)),
        ("an absent task", 0xe5, OTHER, FREE_TSS & !(1 << 47), Ends::Fault(11, other)),
        ("a task too short", 0xe5, OTHER, FREE_TSS & !0xffff | 0x66, Ends::Fault(10, other)),
        ("a task", 0xe5, OTHER, FREE_TSS, TASK_SWITCH),
    ];
    for (what, access, selector, task, ends) in cases {
        let (g, code) = at_ring(3, |a| a.int(0x40));
        g.set_gate_32(vector, selector, 0, access);
        g.set_descriptor(OTHER, task);
        ends_in(g, &code, ends, what);
    }
}

#[test]
fn an_exception_through_a_task_gate_says_that_it_is_external() {
    let (mut g, _) = at_ring(3, |a| a.ud2());
    g.set_gate_32(6, OTHER, 0, 0x85);
    g.set_descriptor(OTHER, BUSY_TSS);
    assert_eq!(g.expect(13).error, Some(u64::from(OTHER) | 1));
}

#[test]
fn iret_with_nt_needs_a_task_to_return_to() {
    let other = u64::from(OTHER);
    let cases = [
        ("no task before", 0, BUSY_TSS, Ends::Fault(10, 0)),
        ("a task of the local table", OTHER | 4, BUSY_TSS, Ends::Fault(10, other | 4)),
        ("a task beyond the table", 0x100, BUSY_TSS, Ends::Fault(10, 0x100)),
        ("a task that is not busy", OTHER, FREE_TSS, Ends::Fault(10, other)),
        ("an absent task", OTHER, BUSY_TSS & !(1 << 47), Ends::Fault(11, other)),
        ("a task", OTHER, BUSY_TSS, TASK_SWITCH),
    ];
    for ring in [0, 3] {
        for (what, link, task, ends) in cases {
            let (mut g, code) = at_ring(ring, |a| a.iretd());
            g.put::<u16>(TSS, link);
            g.set_descriptor(OTHER, task);
            g.flag(rflags::NT);
            ends_in(g, &code, ends, what);
        }
    }
}

#[test]
fn user_mode_can_set_nt_and_return_without_harm() {
    let (mut g, code) = at_ring(3, |a| {
        a.pushfd()?;
        a.or(dword_ptr(esp), rflags::NT as u32)?;
        a.popfd()?;
        a.iretd()
    });
    let e = g.expect(10);
    assert_eq!((e.error, e.rip, e.cs), (Some(0), code.at(3), USER32));
}

#[test]
fn far_calls_and_jumps_to_tasks_are_checked_first() {
    let (gate, other) = (u64::from(GATE), u64::from(OTHER));
    let user = FREE_TSS | 3 << 45;
    // Ring, the descriptor named, another one, and what happens.
    let cases = [
        ("a task of ring 0", 3, FREE_TSS, 0, Ends::Fault(13, gate)),
        ("a busy task", 0, BUSY_TSS, 0, Ends::Fault(13, gate)),
        ("an absent task", 3, user & !(1 << 47), 0, Ends::Fault(11, gate)),
        ("a task too short", 3, user & !0xffff | 0x66, 0, Ends::Fault(10, gate)),
        ("a task of ring 3", 3, user, 0, TASK_SWITCH),
        ("a gate of ring 0", 3, task_gate(OTHER, 0x85), FREE_TSS, Ends::Fault(13, gate)),
        ("an absent gate", 3, task_gate(OTHER, 0x65), FREE_TSS, Ends::Fault(11, gate)),
        ("a gate to nothing", 3, task_gate(0, 0xe5), FREE_TSS, Ends::Fault(13, 0)),
        ("a gate to a busy task", 3, task_gate(OTHER, 0xe5), BUSY_TSS, Ends::Fault(13, other)),
        ("a gate to no task", 3, task_gate(OTHER, 0xe5), 0x00cf_9300_0000_ffff, Ends::Fault(13, other)),
        (
            "a gate to an absent task",
            3,
            task_gate(OTHER, 0xe5),
            FREE_TSS & !(1 << 47),
            Ends::Fault(11, other),
        ),
        // The task's own DPL does not count behind a gate.
        ("a gate to a task", 3, task_gate(OTHER, 0xe5), FREE_TSS, TASK_SWITCH),
    ];
    for call in [false, true] {
        for (what, ring, first, second, ends) in cases {
            let pointer = fword_ptr(POINTER as u32);
            let (g, code) = at_ring(ring, |a| if call { a.call(pointer) } else { a.jmp(pointer) });
            g.set_descriptor(GATE, first);
            g.set_descriptor(OTHER, second);
            ends_in(g, &code, ends, what);
        }
    }
}

#[test]
fn far_calls_and_jumps_to_call_gates_of_32_bit_code_are_checked_first() {
    const CODE: u64 = 0x00cf_9b00_0000_ffff;
    let (gate, other) = (u64::from(GATE), u64::from(OTHER));
    let runs = Ends::Run(Unsupported::CallGate);
    let cases = [
        ("a gate of ring 0", true, call_gate(OTHER, 0x8c), CODE, Ends::Fault(13, gate)),
        ("an absent gate", true, call_gate(OTHER, 0x6c), CODE, Ends::Fault(11, gate)),
        ("a gate to nothing", true, call_gate(0, 0xec), CODE, Ends::Fault(13, 0)),
        ("a gate beyond the table", true, call_gate(0x100, 0xec), CODE, Ends::Fault(13, 0x100)),
        ("a gate to data", true, call_gate(OTHER, 0xec), 0x00cf_9300_0000_ffff, Ends::Fault(13, other)),
        ("a gate to absent code", true, call_gate(OTHER, 0xec), CODE & !(1 << 47), Ends::Fault(11, other)),
        ("a jump inwards", false, call_gate(OTHER, 0xec), CODE, Ends::Fault(13, other)),
        ("a call inwards", true, call_gate(OTHER, 0xec), CODE, runs),
        ("a call of 16 bits inwards", true, call_gate(OTHER, 0xe4), CODE, runs),
        ("a jump across", false, call_gate(OTHER, 0xec), CODE | 3 << 45, runs),
    ];
    for (what, call, first, second, ends) in cases {
        let pointer = fword_ptr(POINTER as u32);
        let (g, code) = at_ring(3, |a| if call { a.call(pointer) } else { a.jmp(pointer) });
        g.set_descriptor(GATE, first);
        g.set_descriptor(OTHER, second);
        ends_in(g, &code, ends, what);
    }
}
