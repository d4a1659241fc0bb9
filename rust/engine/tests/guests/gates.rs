//! Call gates of long mode (SDM vol. 3, 5.8.3.1 and 5.8.4): far calls and jumps through them, by ring and width.

use iced_x86::code_asm::*;

use crate::common::*;

/// The gate under test and where the far pointer to it lies.
const GATE: u16 = FREE;
const POINTER: u64 = USER + 0x100;
const TARGET: u64 = CODE + 0x800;
/// Conforming 64-bit code of ring 0.
const CONFORMING: u16 = FREE + 0x10;

#[derive(Clone, Copy)]
struct CallGate {
    selector: u16,
    offset: u64,
    /// Type, DPL and P.
    access: u64,
    /// The last four bytes, which are to be zero where a type would be.
    last: u64,
}

const OPEN: CallGate = CallGate { selector: CODE64, offset: TARGET, access: 0xec, last: 0 };

fn set_gate(g: &mut Guest, gate: CallGate) {
    let CallGate { selector, offset, access, last } = gate;
    let low = offset & 0xffff | u64::from(selector) << 16 | access << 40 | (offset >> 16 & 0xffff) << 48;
    g.put::<u64>(GDT + u64::from(GATE), low);
    g.put::<u64>(GDT + u64::from(GATE) + 8, offset >> 32 | last << 32);
    g.put::<u64>(GDT + u64::from(CONFORMING), 0x00af_9f00_0000_ffff);
    // An offset that does not count.
    g.put::<u32>(POINTER, 0xdead_beef);
    g.put::<u16>(POINTER + 4, GATE | 3);
    g.load(TARGET, |a| a.hlt());
}

/// A guest in ring 3 at a far call through the gate.
fn caller(gate: CallGate) -> (Guest, Code) {
    let mut g = Guest::long();
    set_gate(&mut g, gate);
    let code = g.user_program(|a| {
        a.call(fword_ptr(POINTER))?;
        a.ud2()
    });
    (g, code)
}

#[test]
fn a_call_to_ring_0_changes_stacks_and_returns() {
    let (mut g, code) = caller(OPEN);
    g.load(TARGET, |a| {
        a.hlt()?;
        a.db(&[0x48, 0xcb])
    });
    g.expect_halt();
    assert_eq!((g.rip(), g.cpu().cpl, g.reg(RSP), g.count()), (TARGET + 1, 0, STACK0 - 32, 2));
    assert_eq!(
        (g.cpu().seg[1].selector, g.cpu().seg[2].selector, g.cpu().seg[2].is_null()),
        (CODE64, 0, true)
    );
    let frame = [0, 1, 2, 3].map(|n| g.get::<u64>(STACK0 - 32 + 8 * n));
    assert_eq!(frame, [code.at(1), USER64.into(), USER_STACK, DATA3.into()]);
    // RETF of 64 bits finds all four.
    let e = g.expect(6);
    assert_eq!((e.rip, e.cs, e.ss, e.rsp), (code.at(1), USER64, DATA3, USER_STACK));
}

#[test]
fn a_call_to_conforming_code_stays_on_its_stack() {
    let (mut g, code) = caller(CallGate { selector: CONFORMING, offset: USER_CODE + 0x100, ..OPEN });
    g.load(USER_CODE + 0x100, |a| a.ud2());
    let e = g.expect(6);
    assert_eq!((e.cs, e.ss, e.rsp, e.rip), (CONFORMING | 3, DATA3, USER_STACK - 16, USER_CODE + 0x100));
    let frame = [0, 1].map(|n| g.get::<u64>(USER_STACK - 16 + 8 * n));
    assert_eq!(frame, [code.at(1), USER64.into()]);
}

#[test]
fn a_jump_goes_where_the_privilege_stays() {
    for (selector, vector) in [(CODE64, 13), (USER64, 6), (CONFORMING, 6)] {
        let mut g = Guest::long();
        set_gate(&mut g, CallGate { selector, offset: USER_CODE + 0x100, ..OPEN });
        g.load(USER_CODE + 0x100, |a| a.ud2());
        g.user_program(|a| a.jmp(fword_ptr(POINTER)));
        let e = g.expect(vector);
        let expected =
            if vector == 13 { (Some(CODE64.into()), USER_CODE) } else { (None, USER_CODE + 0x100) };
        assert_eq!((e.error, e.rip, e.rsp), (expected.0, expected.1, USER_STACK), "{selector:#x}");
    }
}

#[test]
fn compatibility_code_enters_64_bit_code() {
    let mut g = Guest::long();
    set_gate(&mut g, OPEN);
    let code = g.load_bits(32, USER_CODE, USER_CODE, |a| {
        a.call(fword_ptr(POINTER as u32))?;
        a.ud2()
    });
    g.set_ring(USER32, DATA3, USER_STACK);
    g.cpu().rip = USER_CODE;
    g.expect_halt();
    assert!(g.cpu().is_64bit());
    let frame = [0, 1, 2, 3].map(|n| g.get::<u64>(STACK0 - 32 + 8 * n));
    assert_eq!(frame, [code.at(1), USER32.into(), USER_STACK, DATA3.into()]);
}

#[test]
fn gates_that_are_refused() {
    let gate = u64::from(GATE);
    let cases = [
        ("the DPL is inner", CallGate { access: 0x8c, ..OPEN }, 13, gate),
        ("a type in the upper half", CallGate { last: 0x0900, ..OPEN }, 13, gate),
        ("absent", CallGate { access: 0x6c, ..OPEN }, 11, gate),
        ("a call gate of 16-bit code", CallGate { access: 0xe4, ..OPEN }, 13, gate),
        ("no code", CallGate { selector: 0, ..OPEN }, 13, 0),
        ("data", CallGate { selector: DATA0, ..OPEN }, 13, DATA0.into()),
        ("32-bit code", CallGate { selector: CODE32, ..OPEN }, 13, CODE32.into()),
        ("code beyond the table", CallGate { selector: 0x100, ..OPEN }, 13, 0x100),
        ("an offset that is not canonical", CallGate { offset: 1 << 47, ..OPEN }, 13, 0),
    ];
    for (what, gate, vector, error) in cases {
        let (mut g, code) = caller(gate);
        let e = g.expect(vector);
        assert_eq!((e.error, e.rip, e.count, e.rsp), (Some(error), code.start, 0, USER_STACK), "{what}");
    }
}

#[test]
fn faults_of_the_new_stack() {
    // RSP0 is not canonical.
    let (mut g, code) = caller(OPEN);
    g.change_gate(12, |gate| gate.ist = 1);
    g.put::<u64>(TSS + 4, 1 << 47);
    let e = g.expect(12);
    assert_eq!((e.error, e.rip), (Some(0), code.start));

    // RSP0 leads to a page that is not there.
    let (mut g, code) = caller(OPEN);
    g.change_gate(14, |gate| gate.ist = 1);
    g.put::<u64>(TSS + 4, 0x5000_0000);
    let e = g.expect_page_fault(0x5000_0000 - 8, 2);
    assert_eq!((e.rip, e.cs, e.rsp), (code.start, USER64, USER_STACK));
}
