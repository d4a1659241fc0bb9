//! Types and limits of segments outside 64-bit mode (SDM vol. 3, 5.3 to 5.5), where it is tempting to skip their check:
//! when all segments are flat, and when code ends within a decoded block.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::*;

/// 32-bit code of ring 0, with its limit in bytes.
fn short_code(limit: u64) -> u64 {
    0x0040_9b00_0000_0000 | limit & 0xffff | (limit & 0xf_0000) << 32
}

/// A program in a code segment that ends with the byte at `limit`.
fn in_short_code(limit: u64, f: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (Guest, Code) {
    let mut g = Guest::protected();
    g.put::<u64>(GDT + u64::from(FREE), short_code(limit));
    g.set_ring(FREE, DATA0, STACK);
    let code = g.load_bits(32, USER, USER, f);
    g.cpu().rip = USER;
    (g, code)
}

#[test]
fn flat_code_is_read_but_not_written() {
    let mut g = Guest::protected();
    let code = g.program(|a| {
        a.mov(eax, dword_ptr(DATA as u32).cs())?;
        a.mov(dword_ptr(DATA as u32).cs(), eax)
    });
    let e = g.expect(13);
    assert_eq!((e.error, e.rip, e.count), (Some(0), code.at(1), 1));
}

#[test]
fn flat_data_without_the_write_bit_is_not_written() {
    for string in [false, true] {
        let mut g = Guest::protected();
        g.put::<u64>(GDT + u64::from(FREE), 0x00cf_9100_0000_ffff);
        let code = g.program(|a| {
            a.mov(edx, u32::from(FREE))?;
            a.mov(ds, edx)?;
            a.mov(es, edx)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, dword_ptr(edi))?;
            a.mov(ecx, 64)?;
            if string { a.rep().stosd() } else { a.mov(dword_ptr(edi), ecx) }
        });
        let e = g.expect(13);
        assert_eq!((e.error, e.rip, e.count), (Some(0), code.at(6), 6), "string: {string}");
    }
}

#[test]
fn code_ends_at_its_limit_within_a_block() {
    let nops = |a: &mut CodeAssembler| (0..4).try_for_each(|_| a.nop());
    let (mut g, code) = in_short_code(USER + 1, nops);
    let e = g.expect(13);
    assert_eq!((e.error, e.rip, e.cs, e.count), (Some(0), code.at(2), FREE, 2));

    // The same code through another segment runs on; then the first one still ends it.
    let (mut g, _) = in_short_code(USER + 1, nops);
    g.set_ring(CODE32, DATA0, STACK);
    g.load_bits(32, USER + 4, USER + 4, |a| a.hlt());
    g.expect_halt();
    g.set_ring(FREE, DATA0, STACK);
    g.cpu().rip = USER;
    assert_eq!(g.expect(13).rip, USER + 2);
}

#[test]
fn an_instruction_across_the_limit_does_not_begin() {
    // MOV is bytes 0 to 4, ADD is bytes 5 to 9.
    for (limit, first) in [(USER + 3, 0), (USER + 4, 1), (USER + 8, 1)] {
        let (mut g, code) = in_short_code(limit, |a| {
            a.mov(eax, 0x1234_5678)?;
            a.add(eax, 0x1111_1111)
        });
        let e = g.expect(13);
        assert_eq!((e.rip, e.count), (code.at(first), first as u64), "{limit:#x}");
        assert_eq!(g.reg(RAX) as u32, if first == 1 { 0x1234_5678 } else { 0 });
    }
}

#[test]
fn a_branch_beyond_the_limit_faults_at_the_branch() {
    let (mut g, code) = in_short_code(USER + 0x1f, |a| {
        a.nop()?;
        a.jmp(USER + 0x20)
    });
    let e = g.expect(13);
    assert_eq!((e.error, e.rip, e.count), (Some(0), code.at(1), 1));
}
