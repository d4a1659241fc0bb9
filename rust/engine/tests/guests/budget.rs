//! Counting: the budget is exact at every instruction, time and interrupts come at their own count (architecture: a
//! completed instruction counts 1, a REP iteration 1, a faulting instruction and the delivery of an event 0, HLT 1).

use iced_x86::code_asm::*;
use trapgate_engine::Exit;
use trapgate_engine::state::record::VcpuState;
use trapgate_x86::regs::rflags;

use crate::common::*;

/// Loops, calls, REP, faults with a handler in the guest, system calls by INT, flags, stores to code: some of everything.
fn mixed(timer: bool) -> Guest {
    let mut g = Guest::long();
    let handler = g.load(CODE + 0x800, |a| {
        // #UD: skip the two bytes of UD2.
        a.add(qword_ptr(rsp), 2)?;
        a.inc(r9)?;
        a.iretq()
    });
    g.set_gate(6, Gate::interrupt(handler.start));
    let software = g.load(CODE + 0x900, |a| {
        a.add(r10, 3)?;
        a.iretq()
    });
    g.set_gate(0x80, Gate::interrupt(software.start));
    let tick = g.load(CODE + 0xa00, |a| {
        a.inc(qword_ptr(DATA + 0x800))?;
        a.iretq()
    });
    g.set_gate(0x41, Gate::interrupt(tick.start));
    if timer {
        g.flag(rflags::IF);
    }
    g.program(|a| {
        let mut again = a.create_label();
        let mut function = a.create_label();
        let mut over = a.create_label();
        a.mov(ebx, 3)?;
        a.set_label(&mut again)?;
        a.mov(edi, DATA as u32)?;
        a.mov(esi, DATA as u32 + 0x100)?;
        a.mov(ecx, 9)?;
        a.rep().movsb()?;
        a.ud2()?;
        a.call(function)?;
        a.int(0x80)?;
        a.mov(ecx, 5)?;
        a.mov(eax, ebx)?;
        a.mov(edi, DATA as u32 + 0xffe)?;
        a.rep().stosw()?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.add(qword_ptr(DATA + 0x200), rbx)?;
        a.cpuid()?;
        a.rdtsc()?;
        a.mov(qword_ptr(DATA + 0x300), rax)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.pushfq()?;
        a.popfq()?;
        a.hlt()
    });
    g
}

/// The state without what a vCPU must not be told by: nothing is left out.
fn state(g: &mut Guest) -> (VcpuState, Vec<u8>) {
    (g.cpu().save(), g.peek(DATA, 0x2000))
}

/// States at each count, by single steps.
fn trace(mut g: Guest) -> Vec<(VcpuState, Vec<u8>)> {
    let mut states = vec![state(&mut g)];
    while !g.cpu().halted {
        assert_eq!(g.step(), Exit::Budget, "at {:#x}", g.rip());
        assert_eq!(g.count(), states.len() as u64);
        states.push(state(&mut g));
    }
    states
}

#[test]
fn a_run_to_any_count_ends_where_single_steps_do() {
    let states = trace(mixed(false));
    assert!(states.len() > 100, "{}", states.len());
    for (n, want) in states.iter().enumerate() {
        let mut g = mixed(false);
        let exit = g.run_until(n as u64);
        assert_eq!(exit, Exit::Budget, "count {n}");
        assert!(state(&mut g) == *want, "count {n}: {:x?} instead of {:x?}", g.cpu().save(), want.0);
    }
}

#[test]
fn two_runs_end_where_one_does_wherever_they_part() {
    let mut whole = mixed(false);
    whole.expect_halt();
    let end = whole.count();
    let want = state(&mut whole);
    for n in 0..end {
        let mut g = mixed(false);
        g.run_until(n);
        g.expect_halt();
        assert!(state(&mut g) == want, "parted at {n}");
    }
}

#[test]
fn an_interrupt_due_at_any_count_is_taken_at_that_count() {
    let mut quiet = mixed(true);
    quiet.expect_halt();
    let (end, want) = (quiet.count(), state(&mut quiet));
    let gate_off = trace(mixed(true)).iter().map(|(s, _)| s.rflags & rflags::IF == 0).collect::<Vec<_>>();
    for n in 0..end - 1 {
        let mut g = mixed(true);
        g.at_count(n, Line::Vector(0x41));
        g.expect_halt();
        // In a handler the interrupt waits for its IRET; elsewhere it comes at once.
        let taken = g.board().taken.clone();
        let due = (n..end).find(|at| !gate_off[*at as usize]).unwrap();
        assert_eq!(taken, [(due, 0x41)], "due at {n}");
        assert_eq!(g.count(), end + 2, "due at {n}");
        assert_eq!(g.get::<u64>(DATA + 0x800), 1);
        // The handler took two instructions, which RDTSC sees; nothing else may differ.
        let mut seen = state(&mut g);
        seen.0.count -= 2;
        let mut same = want.clone();
        for s in [&mut seen, &mut same] {
            s.0.regs[RAX] = 0;
            s.1[0x300..0x308].fill(0);
            s.1[0x800] = 0;
            // What lay on the stack above is not in this page.
        }
        assert!(seen == same, "due at {n}: {:x?} instead of {:x?}", seen.0, same.0);
    }
}

#[test]
fn a_timer_at_every_count_is_served_every_time() {
    let mut g = mixed(true);
    for n in 0..2000 {
        g.at_count(n, Line::Vector(0x41));
    }
    // Each instruction of the program is followed by the handler's two, all the way.
    let exit = g.run_until(2000);
    assert_eq!(exit, Exit::Budget);
    let taken = g.board().taken.clone();
    assert!(taken.len() > 300, "{}", taken.len());
    assert!(taken.windows(2).all(|pair| pair[1].0 > pair[0].0));
}

#[test]
fn the_time_stamp_counter_is_that_of_its_own_instruction() {
    let mut g = Guest::long();
    g.program(|a| {
        a.nop()?;
        a.nop()?;
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        a.rdtsc()?;
        a.mov(esi, eax)?;
        a.rdtscp()?;
        a.hlt()
    });
    g.cpu().tsc_aux = 0x55;
    g.expect_halt();
    assert_eq!([RBX, RSI, RAX].map(|n| g.reg(n)), [2, 4, 6]);
    assert_eq!((g.reg(RDX), g.reg(RCX)), (1, 0x55));
}

#[test]
fn port_accesses_see_their_own_count() {
    let mut g = Guest::long();
    g.program(|a| {
        a.nop()?;
        a.out(0x80, al)?;
        a.nop()?;
        a.in_(eax, 0x60)?;
        a.hlt()
    });
    g.expect_halt();
    let counts: Vec<_> = g.board().ports.iter().map(|access| access.count).collect();
    assert_eq!(counts, [1, 3]);
}

#[test]
fn a_fault_counts_nothing_however_often_it_comes() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.nop()?;
        a.mov(rax, qword_ptr(0x5000_0000))?;
        a.hlt()
    });
    for n in 0..5 {
        let e = g.expect(14);
        // The stub's HLT, ADD and IRET.
        assert_eq!((e.count, e.rip), (1 + 3 * n, code.at(1)));
    }
}

#[test]
fn a_budget_that_is_used_up_runs_nothing() {
    let mut g = Guest::long();
    g.program(|a| a.nop());
    for _ in 0..3 {
        assert_eq!(g.engine.run(0), Exit::Budget);
        assert_eq!((g.count(), g.rip()), (0, CODE));
    }
}

#[test]
fn an_event_raised_while_the_board_is_asked_comes_before_the_next_instruction() {
    // With an eager board the line goes up inside `next_event`, as a chip's may.
    for due in 0..6 {
        let mut g = Guest::long();
        g.board().eager = true;
        g.flag(rflags::IF);
        g.at_count(due, Line::Vector(0x41));
        let code = g.program(|a| {
            for _ in 0..8 {
                a.nop()?;
            }
            a.hlt()
        });
        let e = g.expect(0x41);
        assert_eq!((e.count, e.rip), (due, code.at(due as usize)));
    }
}

#[test]
fn hlt_with_an_event_raised_while_the_board_is_asked_wakes_before_anything_runs() {
    let mut g = Guest::long();
    g.board().eager = true;
    g.flag(rflags::IF);
    // Due at the count that HLT itself completes.
    g.at_count(2, Line::Vector(0x41));
    let code = g.program(|a| {
        a.nop()?;
        a.hlt()?;
        a.cli()?;
        a.ud2()
    });
    let e = g.expect(0x41);
    assert_eq!((e.count, e.rip), (2, code.at(2)));
}

#[test]
fn hlt_waits_at_its_count_and_an_interrupt_returns_behind_it() {
    let mut g = Guest::long();
    g.flag(rflags::IF);
    let code = g.program(|a| {
        a.hlt()?;
        a.nop()
    });
    assert_eq!(g.run_until(100), Exit::Halted);
    assert_eq!((g.count(), g.rip()), (1, code.at(1)));
    assert_eq!(g.run_until(100), Exit::Halted, "still");
    g.raise(Line::Vector(0x41));
    assert_eq!(g.run_until(100), Exit::Halted, "in the stub");
    let Stop::Event(e) = g.halted() else { panic!("no event") };
    assert_eq!((e.vector, e.rip, e.count), (0x41, code.at(1), 1));
}

#[test]
fn hlt_with_interrupts_off_is_woken_by_an_nmi_only() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        a.hlt()?;
        a.nop()
    });
    assert_eq!(g.run_until(100), Exit::Halted);
    g.raise(Line::Vector(0x41));
    assert_eq!(g.run_until(100), Exit::Halted);
    assert_eq!(g.rip(), code.at(1));
    g.raise(Line::Nmi);
    assert_eq!(g.run_until(100), Exit::Halted);
    let Stop::Event(e) = g.halted() else { panic!("no event") };
    assert_eq!((e.vector, e.rip), (2, code.at(1)));
}

#[test]
fn a_stop_that_is_asked_for_ends_the_run_between_instructions() {
    let mut g = Guest::long();
    let code = g.program(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.jmp(again)
    });
    g.run_until(7);
    g.stop();
    assert_eq!(g.engine.run(1000), Exit::Requested);
    assert_eq!((g.count(), g.rip()), (7, code.at(1)));
    assert_eq!(g.run_until(9), Exit::Budget);
}
