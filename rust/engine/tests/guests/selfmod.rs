//! Code that changes and code at several addresses: stores into the running block and through aliases, writes by devices,
//! instructions across pages, remapped pages, fetch permissions (SDM vol. 3, 8.1.3 and 4.10).

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_x86::regs::pf;

use crate::common::*;

const VA: u64 = 0x1_0000_0000;
const ALIAS: u64 = 0x2_0000_0000;

#[test]
fn the_same_code_at_two_addresses_knows_where_it_is() {
    let mut g = Guest::long();
    g.map(VA, DATA, P);
    g.map(ALIAS, DATA, P);
    // LEA RAX, [RIP]; RET.
    g.poke(DATA, &[0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3]);
    g.program(|a| {
        a.mov(rsi, VA)?;
        a.mov(rdi, ALIAS)?;
        for _ in 0..3 {
            a.call(rsi)?;
            a.mov(rbx, rax)?;
            a.call(rdi)?;
            a.mov(rcx, rax)?;
        }
        a.hlt()
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.reg(RCX)), (VA + 7, ALIAS + 7));
}

#[test]
fn code_changed_through_one_alias_is_seen_through_the_other() {
    let mut g = Guest::long();
    g.map(VA, DATA, P | W);
    g.map(ALIAS, DATA, P);
    g.poke(DATA, &[0xb8, 1, 0, 0, 0, 0xc3]);
    g.program(|a| {
        a.mov(rsi, VA)?;
        a.mov(rdi, ALIAS)?;
        a.call(rsi)?;
        a.mov(ebx, eax)?;
        a.call(rdi)?;
        a.add(ebx, eax)?;
        a.mov(byte_ptr(rsi + 1), 0x10)?;
        a.call(rdi)?;
        a.add(ebx, eax)?;
        a.call(rsi)?;
        a.add(ebx, eax)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RBX), 0x22);
}

type Store = (&'static str, fn(&mut CodeAssembler) -> Result<(), IcedError>);

/// Stores of 41h to [RDI], the immediate byte of an instruction to come; some with more bytes that change nothing.
const STORES: &[Store] = &[
    ("mov byte", |a| a.mov(byte_ptr(rdi), 0x41)),
    ("mov dword", |a| a.mov(dword_ptr(rdi), 0x41)),
    ("mov register", |a| a.mov(qword_ptr(rdi - 4), rbx)),
    ("add", |a| a.add(byte_ptr(rdi), 0x40)),
    ("lock xadd", |a| a.lock().xadd(byte_ptr(rdi), dl)),
    ("xchg", |a| a.xchg(byte_ptr(rdi), cl)),
    ("lock cmpxchg", |a| a.lock().cmpxchg(byte_ptr(rdi), cl)),
    ("bts", |a| a.bts(dword_ptr(rdi), 6)),
    ("stosb", |a| a.stosb()),
    ("rep stosb", |a| {
        a.mov(ecx, 1)?;
        a.rep().stosb()
    }),
    ("rep movsb", |a| {
        a.mov(ecx, 1)?;
        a.lea(rsi, qword_ptr(DATA))?;
        a.rep().movsb()
    }),
    ("push", |a| {
        a.lea(rsp, qword_ptr(rdi + 4))?;
        a.push(rbx)
    }),
    ("movd", |a| {
        a.movd(xmm0, ecx)?;
        a.movd(dword_ptr(rdi), xmm0)
    }),
    ("movups", |a| {
        a.movups(xmm0, xmmword_ptr(rdi))?;
        a.pinsrb(xmm0, ecx, 0)?;
        a.movups(xmmword_ptr(rdi), xmm0)
    }),
    ("fistp", |a| {
        a.fninit()?;
        a.fild(dword_ptr(DATA))?;
        a.fistp(dword_ptr(rdi))
    }),
    ("setcc and shift", |a| {
        a.stc()?;
        a.setc(byte_ptr(rdi))?;
        a.shl(byte_ptr(rdi), 6)?;
        a.inc(byte_ptr(rdi))
    }),
];

/// The store, then MOV EBP, imm32 whose immediate lies at RDI, all in one block.
fn store_ahead(store: &Store, through_alias: bool, at: u64) -> (Guest, Code) {
    let mut g = Guest::long();
    g.put::<u32>(DATA, 0x41);
    g.map(ALIAS, at & !0xfff, P | W);
    g.map(ALIAS + 0x1000, (at & !0xfff) + 0x1000, P | W);
    g.map(ALIAS - 0x1000, (at & !0xfff) - 0x1000, P | W);
    let code = g.load(at, |a| {
        (store.1)(a)?;
        a.mov(ebp, 1)?;
        a.hlt()
    });
    // The register forms need what stands around the immediate.
    let target = code.end - 5;
    let around: u64 = g.get(target - 4);
    g.set_reg(RBX, around & !0xff_0000_0000 | 0x41_0000_0000);
    g.set_reg(RDX, 0x40);
    g.set_reg(RCX, 0x41);
    g.set_reg(RAX, if store.0 == "lock cmpxchg" { 1 } else { 0x41 });
    g.set_reg(RDI, if through_alias { ALIAS + target - (at & !0xfff) } else { target });
    g.cpu().rip = at;
    (g, code)
}

#[test]
fn a_store_into_the_running_block_is_seen_at_the_next_instruction() {
    for store in STORES {
        for through_alias in [false, true] {
            for at in [CODE, CODE + 0xff0, CODE + 0xff3, CODE + 0xff8, CODE + 0xffb] {
                let (mut g, code) = store_ahead(store, through_alias, at);
                // Stack and frame for the tests that move RSP.
                g.expect_halt();
                assert_eq!(g.reg(RBP), 0x41, "{}, alias {through_alias}, at {at:#x}", store.0);
                assert_eq!(g.rip(), code.end, "{}", store.0);
            }
        }
    }
}

#[test]
fn a_store_into_code_that_ran_before_is_seen_when_it_runs_again() {
    for store in STORES {
        let (mut g, code) = store_ahead(store, true, CODE);
        // MOV EBP, imm; HLT, alone, three times: known, known and found quickly, changed.
        let tail = code.end - 6;
        for _ in 0..2 {
            let start = g.rip();
            g.cpu().rip = tail;
            g.expect_halt();
            assert_eq!(g.reg(RBP), 1);
            g.cpu().rip = start;
        }
        g.expect_halt();
        assert_eq!(g.reg(RBP), 0x41, "{}", store.0);
    }
}

#[test]
fn a_device_that_writes_between_runs_changes_what_runs() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(eax, 1)?;
        a.add(ebx, eax)?;
        a.jmp(again)
    });
    g.run_until(30);
    assert_eq!(g.reg(RBX), 10);
    g.memory.write(code.start + 1, &[2]).unwrap();
    g.run_until(60);
    assert_eq!(g.reg(RBX), 30);
    // In the middle of the block as well.
    g.run_until(61);
    g.memory.write(code.at(1), &[0x29]).unwrap();
    g.run_until(63);
    assert_eq!(g.reg(RBX), 28, "SUB now");
}

#[test]
fn data_beside_code_is_written_and_read_correctly() {
    let mut g = Guest::long();
    g.program(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(CODE + 0x800))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.get::<u64>(CODE + 0x800), 1000);
    assert_eq!(g.count(), 1 + 3000 + 1);
}

// ---- instructions across pages ----

/// MOV EAX, imm32 with its last two bytes in the next page, then RET; both pages at VA.
fn across() -> Guest {
    let mut g = Guest::long();
    g.map(VA, DATA, P);
    g.map(VA + 0x1000, DATA + 0x3000, P | W);
    g.poke(DATA + 0xffd, &[0xb8, 0x11, 0x22]);
    g.poke(DATA + 0x3000, &[0x33, 0x44, 0xc3]);
    g.poke(DATA + 0x5000, &[0x55, 0x66, 0xc3]);
    g.set_reg(RSI, VA + 0xffd);
    g
}

fn call_twice(g: &mut Guest, between: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
    g.program(|a| {
        a.call(rsi)?;
        a.mov(ebx, eax)?;
        between(a)?;
        a.call(rsi)?;
        a.hlt()
    });
}

#[test]
fn an_instruction_across_pages_sees_its_second_page_change() {
    for through_alias in [false, true] {
        let mut g = across();
        let at = if through_alias { DATA + 0x3000 } else { VA + 0x1000 };
        g.set_reg(RDI, at);
        call_twice(&mut g, |a| a.mov(byte_ptr(rdi), 0x77));
        g.expect_halt();
        assert_eq!((g.reg(RBX), g.reg(RAX)), (0x4433_2211, 0x4477_2211));
    }
}

#[test]
fn an_instruction_across_pages_sees_its_second_page_remapped() {
    let mut g = across();
    let pte = g.pte(VA + 0x1000);
    g.set_reg(RDX, (DATA + 0x5000) | P);
    call_twice(&mut g, |a| {
        a.mov(qword_ptr(pte), rdx)?;
        a.invlpg(ptr(rsi + 3))
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.reg(RAX)), (0x4433_2211, 0x6655_2211));
}

#[test]
fn an_instruction_across_pages_faults_at_the_second_pages_start() {
    for (entry, error) in [(0, pf::I), ((DATA + 0x3000) | P | NX, pf::P | pf::I)] {
        let mut g = across();
        let pte = g.pte(VA + 0x1000);
        g.set_reg(RDX, entry);
        call_twice(&mut g, |a| {
            a.mov(qword_ptr(pte), rdx)?;
            a.invlpg(ptr(rsi + 3))
        });
        let e = g.expect_page_fault(VA + 0x1000, error);
        assert_eq!(e.rip, VA + 0xffd);
        g.put(pte, (DATA + 0x5000) | P);
        g.expect_halt();
        assert_eq!(g.reg(RAX), 0x6655_2211);
    }
}

#[test]
fn undecodable_bytes_across_pages_see_their_second_page_change() {
    // What lies before the page's end; then behind it, first nothing that decodes and then an instruction.
    let cases: [(&[u8], &[u8], &[u8]); 4] = [
        (&[0x0f], &[0x04, 0x90], &[0xa2, 0xf4]),
        (&[0x0f, 0x38], &[0x7f, 0xc0, 0x90], &[0x00, 0xc0, 0xf4]),
        (&[0x66], &[0x0f, 0x04, 0x90], &[0x0f, 0x1f, 0xc0, 0xf4]),
        (&[0x48, 0x0f], &[0x04, 0x90], &[0xa2, 0xf4]),
    ];
    for (before, bad, good) in cases {
        for through_alias in [false, true] {
            let mut g = Guest::long();
            g.map(VA, DATA, P);
            g.map(VA + 0x1000, DATA + 0x3000, P);
            let at = 0x1000 - before.len() as u64;
            g.poke(DATA + at, before);
            g.poke(DATA + 0x3000, bad);
            for _ in 0..2 {
                g.cpu().rip = VA + at;
                assert_eq!(g.expect(6).rip, VA + at, "{before:x?}");
            }
            if through_alias {
                g.set_reg(RDI, DATA + 0x3000);
                for byte in good {
                    g.set_reg(RAX, u64::from(*byte));
                    let next = g.reg(RDI) + 1;
                    g.program(|a| {
                        a.mov(byte_ptr(rdi), al)?;
                        a.hlt()
                    });
                    g.expect_halt();
                    g.set_reg(RDI, next);
                }
            } else {
                g.poke(DATA + 0x3000, good);
            }
            g.cpu().rip = VA + at;
            g.expect_halt();
        }
    }
}

#[test]
fn code_up_to_the_end_of_a_page_needs_the_next_one_only_to_go_on() {
    let mut g = Guest::long();
    g.map(VA, DATA, P);
    g.map(VA + 0x1000, 0, 0);
    g.load_bits(64, DATA + 0xff9, VA + 0xff9, |a| {
        a.mov(eax, 0x1234)?;
        a.inc(eax)
    });
    g.cpu().rip = VA + 0xff9;
    let e = g.expect_page_fault(VA + 0x1000, pf::I);
    assert_eq!((e.rip, e.count, g.reg(RAX)), (VA + 0x1000, 2, 0x1235));
}

#[test]
fn only_bytes_that_the_instruction_has_are_fetched() {
    // Bytes at the end of a page whose successor is absent; whether the fault is that of the page.
    let cases: [(&[u8], Option<u8>); 6] = [
        (&[0x0f, 0x0b], Some(6)),
        (&[0x0f], None),
        (&[0x66, 0x66], None),
        (&[0xb8, 1, 2, 3], None),
        // #UD by its opcode alone in 64-bit mode.
        (&[0x06], Some(6)),
        (&[0x66; 15], Some(13)),
    ];
    for (bytes, vector) in cases {
        let mut g = Guest::long();
        g.map(VA, DATA, P);
        g.map(VA + 0x1000, 0, 0);
        let at = 0x1000 - bytes.len() as u64;
        g.poke(DATA + at, bytes);
        g.cpu().rip = VA + at;
        match vector {
            Some(vector) => assert_eq!(g.expect(vector).rip, VA + at),
            None => assert_eq!(g.expect_page_fault(VA + 0x1000, pf::I).rip, VA + at),
        }
    }
}

#[test]
fn fifteen_bytes_are_an_instruction_and_sixteen_are_gp() {
    for (prefixes, fits) in [(14, true), (15, false)] {
        let mut g = Guest::long();
        let mut bytes = vec![0x2e; prefixes];
        bytes.extend([0x90, 0xf4]);
        g.poke(CODE, &bytes);
        g.cpu().rip = CODE;
        if fits {
            g.expect_halt();
            assert_eq!(g.count(), 2);
        } else {
            assert_eq!(g.expect(13).error, Some(0));
        }
    }
}

// ---- where code may be ----

#[test]
fn fetches_are_refused_by_nx_by_privilege_and_by_smep() {
    use trapgate_x86::regs::cr4;
    // Flags of the page, ring 3, SMEP, error code or none.
    let cases = [
        (P | W | NX, false, false, Some(pf::P | pf::I)),
        (P | W | U | NX, true, false, Some(pf::P | pf::U | pf::I)),
        (P | W, true, false, Some(pf::P | pf::U | pf::I)),
        (0, true, false, Some(pf::U | pf::I)),
        (P | U, false, true, Some(pf::P | pf::I)),
        (P | U, false, false, None),
        (P | U, true, true, None),
        (P, false, true, None),
    ];
    for (flags, user, smep, error) in cases {
        let mut g = Guest::long();
        g.map(VA, DATA, flags);
        g.poke(DATA, &[0x0f, 0x0b]);
        g.set_reg(RSI, VA);
        if smep {
            g.cpu().cr4 |= cr4::SMEP;
            // The harness's own code must not be open to users then.
            g.map(CODE, CODE, P | W);
        }
        if user {
            g.user_program(|a| a.jmp(rsi));
        } else {
            g.program(|a| a.jmp(rsi));
        }
        let e = match error {
            Some(error) => g.expect_page_fault(VA, error),
            None => g.expect(6),
        };
        assert_eq!((e.rip, e.count), (VA, 1));
    }
}

#[test]
fn without_nxe_bit_63_is_reserved_and_fetches_are_not_told_apart() {
    use trapgate_x86::regs::efer;
    let mut g = Guest::long();
    g.cpu().efer &= !efer::NXE;
    g.map(VA, DATA, P | NX);
    g.cpu().rip = VA;
    g.expect_page_fault(VA, pf::P | pf::RSVD);
    let mut g = Guest::long();
    g.cpu().efer &= !efer::NXE;
    g.cpu().rip = VA;
    g.expect_page_fault(VA, 0);
}

#[test]
fn branches_to_impossible_addresses_fault_at_the_branch() {
    let table: &[Store] = &[
        ("jmp", |a| a.jmp(rsi)),
        ("jmp memory", |a| a.jmp(qword_ptr(rdi))),
        ("ret", |a| {
            a.push(rsi)?;
            a.ret()
        }),
        ("ret n", |a| {
            a.push(rsi)?;
            a.ret_1(8)
        }),
    ];
    for (name, branch) in table {
        let mut g = Guest::long();
        g.set_reg(RSI, 0x8000_0000_0000);
        g.set_reg(RDI, DATA);
        g.put::<u64>(DATA, 0x8000_0000_0000);
        let code = g.program(branch);
        let e = g.expect(13);
        let last = if name.starts_with("ret") { code.at(1) } else { code.at(0) };
        assert_eq!((e.error, e.rip), (Some(0), last), "{name}");
    }
}

#[test]
fn running_over_the_last_canonical_address_faults_behind_it() {
    let mut g = Guest::long();
    g.map(0x7fff_ffff_f000, DATA, P);
    g.poke(DATA + 0xffe, &[0x90, 0x90]);
    g.cpu().rip = 0x7fff_ffff_fffe;
    let e = g.expect(13);
    assert_eq!((e.error, e.rip, e.count), (Some(0), 0x8000_0000_0000, 2));
}

#[test]
fn a_code_page_remapped_and_invalidated_runs_the_new_page() {
    let mut g = Guest::long();
    g.map(VA, DATA, P);
    g.poke(DATA, &[0xb8, 1, 0, 0, 0, 0xc3]);
    g.poke(DATA + 0x1000, &[0xb8, 2, 0, 0, 0, 0xc3]);
    let pte = g.pte(VA);
    g.set_reg(RSI, VA);
    g.set_reg(RDX, (DATA + 0x1000) | P);
    call_twice(&mut g, |a| {
        a.call(rsi)?;
        a.mov(qword_ptr(pte), rdx)?;
        a.invlpg(ptr(rsi + 0xff0))
    });
    g.expect_halt();
    assert_eq!((g.reg(RBX), g.reg(RAX)), (1, 2));
}

#[test]
fn the_same_bytes_mean_different_things_in_64_and_32_bit_code() {
    // 48h is REX.W or DEC EAX.
    let bytes = [0x48, 0xff, 0xc1, 0x0f, 0x0b];
    let mut g = Guest::long();
    g.poke(CODE, &bytes);
    for round in 0..3 {
        g.set_ring(CODE64, DATA0, STACK);
        g.set_reg(RAX, 5);
        g.set_reg(RCX, 0xffff_ffff);
        g.cpu().rip = CODE;
        let e = g.expect(6);
        assert_eq!((g.reg(RAX), g.reg(RCX), e.count % 3), (5, 0x1_0000_0000, 1), "round {round}");
        g.set_ring(CODE32, DATA0, STACK);
        g.set_reg(RCX, 0xffff_ffff);
        g.cpu().rip = CODE;
        g.expect(6);
        assert_eq!((g.reg(RAX), g.reg(RCX)), (4, 0), "round {round}");
        // Counts modulo 3 begin anew.
        g.cpu().count = 0;
    }
}

#[test]
fn code_runs_from_read_only_memory() {
    let mut g = Guest::long();
    g.load(ROM, |a| {
        a.mov(eax, 7)?;
        a.hlt()
    });
    g.cpu().rip = ROM;
    g.expect_halt();
    assert_eq!(g.reg(RAX), 7);
}

#[test]
fn a_loop_that_changes_itself_each_time_ends() {
    let mut g = Guest::long();
    // The immediate of ADD grows by one each round: 1 + 2 + ... + 100.
    g.program(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.add(ebx, 0x1000)?;
        a.inc(dword_ptr(CODE + 5 + 2))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.hlt()
    });
    g.expect_halt();
    assert_eq!(g.reg(RBX), 100 * 0x1000 + 99 * 100 / 2);
    assert_eq!(g.step(), Exit::Halted);
}
