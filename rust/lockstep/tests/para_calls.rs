//! System calls of para-virtual user code and returns to it, which translated code does by itself while nothing is unusual: a
//! small kernel makes all kinds of usual and unusual ones, and both engines must agree on every state.

mod common;

use common::para_machine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use trapgate_lockstep::hash;
use trapgate_machine::{Exit, Limits, Machine};
use trapgate_xen::hypercall::Disposition;

const BASE: u64 = 0xffff_ffff_8000_0000;
const PAGE: u64 = 4096;
const CODE: u64 = BASE + 0x1_0000;
/// The kernel's stacks: the frame of a system call lies in one page of the first, in two of the second.
const STACK: u64 = BASE + 0x260 * PAGE;
const SPLIT_STACK: u64 = BASE + 0x262 * PAGE + 0x20;
/// Where user code, its data and its stack are, in two address spaces.
const USER: u64 = 5 << 39;
const USER_DATA: u64 = USER + PAGE;
const USER_STACK: u64 = USER + 3 * PAGE;
/// Roots of both for user mode, the tables below them, and what these lead to: code, data, stack.
const ROOTS: [u64; 2] = [0x300, 0x301];
const TABLES: [u64; 2] = [0x310, 0x318];
const PAGES: [[u64; 3]; 2] = [[0x270, 0x271, 0x272], [0x274, 0x275, 0x272]];
/// vcpu_info: pending byte, and behind it the mask.
const INFO: u64 = BASE + 0x250 * PAGE + 0x40;
/// What the kernel counts, and where it keeps an address.
const COUNT: u64 = BASE + 0x251 * PAGE;
const SAVED: u64 = COUNT + 8;
const ARGUMENTS: u64 = BASE + 0x252 * PAGE;
/// Arguments that the kernel uses: an operation, or an update of an entry, every 32 bytes.
const PREPARED: u64 = BASE + 0x253 * PAGE;

const SET_TRAP_TABLE: u32 = 0;
const STACK_SWITCH: u32 = 3;
const UPDATE_VA_MAPPING: u32 = 14;
const VCPU_OP: u32 = 24;
const MMUEXT_OP: u32 = 26;
const CALLBACK_OP: u32 = 30;
const IRET: u64 = 23;
const SELF: u64 = 0x7ff0;

const TF: i32 = 0x100;
const IF: i32 = 0x200;
const DF_NT_ID: i32 = 0x20_4400;
const AC: i32 = 0x4_0000;

/// The parts of the code, each with room of its own.
#[derive(Clone, Copy)]
enum Part {
    Start,
    Call,
    Event,
    Debug,
    Protection,
    Alignment,
}

impl Part {
    const ROOM: usize = 0x800;

    fn address(self) -> u64 {
        CODE + self as u64 * Self::ROOM as u64
    }
}

type Assembled = Result<(), IcedError>;

/// Makes what RSP points to, RIP, CS, RFLAGS, RSP and SS, the end of an iret's frame, and returns.
fn leave(a: &mut CodeAssembler, how: i32) -> Assembled {
    a.push(how)?;
    a.push(rcx)?;
    a.push(r11)?;
    a.push(rax)?;
    a.mov(eax, IRET as u32)?;
    a.syscall()
}

fn count(a: &mut CodeAssembler, by: i32) -> Assembled {
    a.mov(rdi, COUNT)?;
    a.add(qword_ptr(rdi), by)
}

/// A program that asks for all kinds of returns, by random numbers in RBX, and looks at what it gets back. It is another one,
/// with another factor, in the second address space.
fn user(a: &mut CodeAssembler, factor: i32) -> Assembled {
    let (mut top, mut forwards) = (a.create_label(), a.create_label());
    a.set_label(&mut top)?;
    for (shift, left) in [(13, true), (7, false), (17, true)] {
        a.mov(rax, rbx)?;
        if left {
            a.shl(rax, shift)?
        } else {
            a.shr(rax, shift)?
        }
        a.xor(rbx, rax)?;
    }
    a.test(bl, 0x40)?;
    a.jz(forwards)?;
    a.std()?;
    a.set_label(&mut forwards)?;
    a.push(rbx)?;
    a.mov(r8, cs)?;
    a.add(rcx, rbx)?;
    a.syscall()?;
    a.pushfq()?;
    a.pop(r9)?;
    a.pop(r12)?;
    a.mov(rdx, USER_DATA)?;
    a.add(r13, qword_ptr(rdx))?;
    a.mov(qword_ptr(rdx), r13)?;
    for reg in [rax, rcx, r8, r9, r11, r12, rsp] {
        a.imul_3(r13, r13, factor)?;
        a.add(r13, reg)?;
    }
    a.cld()?;
    a.inc(r14)?;
    a.jmp(top)
}

/// Calls with prepared arguments: a flush; the roots; what code, data and stack are, as pages of either space or with flags
/// that a walk is to set, in either space.
const PREPARED_CALLS: [u32; 13] = [26, 26, 26, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];

fn prepared_arguments(first: u64) -> Vec<u64> {
    let entry = |space: usize, table: u64, n: usize| {
        (first + table) << 12 | 0x67 | (space as u64) << 9 | (n as u64) << 10
    };
    let mut words = vec![6, 0, 0, 0];
    ROOTS.iter().for_each(|root| words.extend([15, first + root, 0, 0]));
    for (tables, [_, data, _]) in TABLES.iter().zip(PAGES) {
        let l1 = (first + tables + 2) << 12;
        for (space, [code, ..]) in PAGES.into_iter().enumerate() {
            words.extend([l1, entry(space, code, 0), 0, 0]);
        }
        words.extend([l1 + 8, entry(0, data, 1) & !0x60, 0, 0]);
        words.extend([l1 + 8, entry(1, PAGES[0][1], 1), 0, 0]);
        words.extend([l1 + 16, entry(0, PAGES[0][2], 2), 0, 0]);
    }
    words
}

/// Makes the call of a number.
fn prepared(a: &mut CodeAssembler, n: u64) -> Assembled {
    a.mov(rdi, PREPARED + n * 32)?;
    a.mov(esi, 1)?;
    a.xor(edx, edx)?;
    a.mov(r10d, SELF as u32)?;
    a.mov(eax, PREPARED_CALLS[n as usize])?;
    a.syscall()
}

/// Mixes a frame, with the mask that its CS tells of, into what is compared, which does not forget it.
fn note_frame(a: &mut CodeAssembler) -> Assembled {
    for word in 0..5 {
        a.imul_3(r13, r13, 41)?;
        a.add(r13, qword_ptr(rsp + 8 * word))?;
    }
    Ok(())
}

/// The kernel's entry for system calls: what it does to the frame depends on RBX.
fn system_call(a: &mut CodeAssembler) -> Assembled {
    a.pop(rcx)?;
    a.pop(r11)?;
    a.mov(r10, ss)?;
    a.add(r13, r10)?;
    note_frame(a)?;
    count(a, 1)?;
    a.mov(eax, ebx)?;
    a.shr(eax, 8)?;
    a.and(eax, 31)?;
    let mut next = a.create_label();
    let case = |a: &mut CodeAssembler, n: i32, next: &mut CodeLabel| {
        a.set_label(next)?;
        *next = a.create_label();
        a.cmp(eax, n)?;
        a.jne(*next)
    };
    case(a, 0, &mut next)?;
    a.and(dword_ptr(rsp + 16), !(AC | DF_NT_ID))?;
    case(a, 1, &mut next)?;
    a.mov(rdi, INFO)?;
    a.mov(byte_ptr(rdi), 1)?;
    case(a, 2, &mut next)?;
    a.and(dword_ptr(rsp + 16), !IF)?;
    case(a, 3, &mut next)?;
    a.or(dword_ptr(rsp + 16), DF_NT_ID)?;
    case(a, 4, &mut next)?;
    a.or(dword_ptr(rsp + 16), TF)?;
    case(a, 5, &mut next)?;
    a.or(dword_ptr(rsp + 16), AC)?;
    case(a, 6, &mut next)?;
    a.mov(rdi, SAVED)?;
    a.mov(rax, qword_ptr(rsp))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.btc(rax, 62)?;
    a.mov(qword_ptr(rsp), rax)?;
    for (n, stack) in [(7, SPLIT_STACK), (8, STACK), (9, STACK)] {
        case(a, n, &mut next)?;
        a.mov(rsi, stack)?;
        a.mov(edi, 0xe02b)?;
        a.mov(eax, STACK_SWITCH)?;
        a.syscall()?;
    }
    case(a, 10, &mut next)?;
    // To a place in the kernel first, on the same stack.
    let mut there = a.create_label();
    a.mov(rdx, rsp)?;
    a.push(0xe02b)?;
    a.push(rdx)?;
    a.push(2)?;
    a.push(0xe030)?;
    a.lea(rax, qword_ptr(there))?;
    a.push(rax)?;
    leave(a, 0)?;
    a.set_label(&mut there)?;
    a.nop()?;
    case(a, 11, &mut next)?;
    leave(a, 0x100)?;
    for n in 0..PREPARED_CALLS.len() as u64 {
        case(a, 16 + n as i32, &mut next)?;
        prepared(a, n)?;
        // The change of an entry counts from the next flush on.
        prepared(a, 0)?;
    }
    case(a, 12, &mut next)?;
    // Another number than iret's, by as much as fits beside it.
    a.mov(rax, 23u64 | 1 << 32)?;
    a.syscall()?;
    a.set_label(&mut next)?;
    // Mostly with events unmasked.
    let mut masked = a.create_label();
    a.test(ebx, 0x30000)?;
    a.jz(masked)?;
    a.or(dword_ptr(rsp + 16), IF)?;
    a.set_label(&mut masked)?;
    leave(a, 0)
}

fn start(a: &mut CodeAssembler) -> Assembled {
    a.mov(rsp, STACK)?;
    a.mov(rbx, 0x9e37_79b9_7f4a_7c15u64)?;
    a.push(0xe02b)?;
    for word in [USER_STACK, 0x202, 0xe033, USER] {
        a.mov(rax, word)?;
        a.push(rax)?;
    }
    leave(a, 0)
}

/// An entry of the kernel's behind which a word of the frame is changed by `change`, and which counts itself.
fn handler(
    a: &mut CodeAssembler,
    error: bool,
    by: i32,
    change: impl FnOnce(&mut CodeAssembler) -> Assembled,
) -> Assembled {
    a.pop(rcx)?;
    a.pop(r11)?;
    if error {
        a.pop(rax)?;
        a.add(r13, rax)?;
    }
    note_frame(a)?;
    count(a, by)?;
    change(a)?;
    leave(a, 0)
}

/// All of the code.
fn image() -> Vec<u8> {
    let mut image = Vec::new();
    let mut put = |part: Part, make: &dyn Fn(&mut CodeAssembler) -> Assembled| {
        let mut a = CodeAssembler::new(64).unwrap();
        make(&mut a).unwrap();
        let code = a.assemble(part.address()).unwrap();
        assert!(code.len() <= Part::ROOM && image.len() <= part as usize * Part::ROOM);
        image.resize(part as usize * Part::ROOM, 0xcc);
        image.extend(code);
    };
    put(Part::Start, &start);
    put(Part::Call, &system_call);
    put(Part::Event, &|a| {
        handler(a, false, 0x100, |a| {
            a.mov(rdi, INFO)?;
            a.mov(byte_ptr(rdi), 0)
        })
    });
    put(Part::Debug, &|a| handler(a, false, 0x1_0000, |a| a.and(dword_ptr(rsp + 16), !TF)));
    put(Part::Protection, &|a| {
        handler(a, true, 0x100_0000, |a| {
            a.mov(rdi, SAVED)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.mov(qword_ptr(rsp), rax)
        })
    });
    put(Part::Alignment, &|a| handler(a, true, 0, |a| a.and(dword_ptr(rsp + 16), !AC)));
    image
}

fn store(machine: &mut Machine, at: u64, words: &[u64]) {
    for (word, i) in words.iter().zip(0..) {
        machine.cpu_mut().store_u64(at + i * 8, *word).unwrap();
    }
}

fn words<const N: usize>(machine: &mut Machine, at: u64) -> [u64; N] {
    std::array::from_fn(|i| machine.cpu_mut().load_u64(at + i as u64 * 8).unwrap())
}

fn call(machine: &mut Machine, number: u32, args: [u64; 5]) {
    assert_eq!(machine.native_hypercall(number, args).unwrap(), Some(0), "call {number}");
}

/// Makes an address space for user mode: the kernel's root with a program below it.
fn user_space(machine: &mut Machine, space: usize, kernel: u64, first: u64) {
    let mut a = CodeAssembler::new(64).unwrap();
    user(&mut a, [31, 37][space]).unwrap();
    let code = a.assemble(USER).unwrap();
    let ([code_page, ..], tables, root) = (PAGES[space], TABLES[space], ROOTS[space]);
    machine.cpu_mut().copy_out(BASE + code_page * PAGE, &code).unwrap();
    let entry = |pfn: u64| (first + pfn) << 12 | 0x67;
    let mut entries = vec![0; PAGE as usize];
    machine.cpu().memory().read(kernel, &mut entries).unwrap();
    machine.cpu_mut().copy_out(BASE + root * PAGE, &entries).unwrap();
    for (table, index, to) in
        [(root, USER >> 39, tables), (tables, 0, tables + 1), (tables + 1, 0, tables + 2)]
    {
        store(machine, BASE + table * PAGE + index * 8, &[entry(to)]);
    }
    store(machine, BASE + (tables + 2) * PAGE, &PAGES[space].map(entry));
    for table in [root, tables, tables + 1, tables + 2] {
        let va = BASE + table * PAGE;
        call(machine, UPDATE_VA_MAPPING, [va, entry(table) & !2, 0, 0, 0]);
    }
}

fn machine(translate: bool) -> Machine {
    let mut machine = para_machine(&image());
    let root = machine.domain().unwrap().paging().kernel_root(0).unwrap();
    let first = machine.domain().unwrap().layout.ram.start;
    let traps = [(1, Part::Debug), (13, Part::Protection), (17, Part::Alignment)];
    let table: Vec<u64> =
        traps.iter().flat_map(|(vector, part)| [vector | 4 << 8 | 0xe033 << 16, part.address()]).collect();
    store(&mut machine, ARGUMENTS, &[table, vec![0, 0]].concat());
    call(&mut machine, SET_TRAP_TABLE, [ARGUMENTS, 0, 0, 0, 0]);
    for (kind, part) in [(0, Part::Event), (2, Part::Call)] {
        store(&mut machine, ARGUMENTS, &[kind | 1 << 16, part.address()]);
        call(&mut machine, CALLBACK_OP, [0, ARGUMENTS, 0, 0, 0]);
    }
    store(&mut machine, ARGUMENTS, &[first + 0x250, 0x40]);
    call(&mut machine, VCPU_OP, [10, 0, ARGUMENTS, 0, 0]);
    // The second stack's pages do not lie one behind the other.
    // Behind the first lies what looks like the end of a frame, for whoever reads on.
    let page = SPLIT_STACK & !(PAGE - 1);
    store(&mut machine, page, &[0xe033, 0x202, 0x1234, 0xe02b]);
    let apart = (first + 0x26a) << 12 | 0x67;
    call(&mut machine, UPDATE_VA_MAPPING, [page, apart, 2, 0, 0]);
    for space in 0..2 {
        user_space(&mut machine, space, root.maddr(), first);
    }
    store(&mut machine, PREPARED, &prepared_arguments(first));
    store(&mut machine, ARGUMENTS, &[15, first + ROOTS[0], 0]);
    call(&mut machine, MMUEXT_OP, [ARGUMENTS, 1, 0, SELF, 0]);
    call(&mut machine, STACK_SWITCH, [0xe02b, STACK, 0, 0, 0]);
    machine.set_translate(translate.then(Default::default));
    machine
}

fn calls(machine: &Machine) -> Vec<(u32, u64)> {
    let domain = machine.domain().unwrap();
    domain.hypercalls.rows().map(|row| (row.number, row.counters().calls)).collect()
}

#[test]
fn both_engines_agree_on_all_kinds_of_calls_and_returns() {
    let [mut one, mut other] = [false, true].map(machine);
    for (every, end) in [(1, 3_000), (997, 300_000), (50_021, 3_000_000)] {
        let (mut lines, mut others) = (Vec::new(), Vec::new());
        hash::run(&mut one, every, end, |line| lines.push(line));
        hash::run(&mut other, every, end, |line| others.push(line));
        for (line, other) in lines.iter().zip(&others) {
            assert_eq!(line, other);
            assert_eq!(line.exit, None);
        }
        assert_eq!(lines.len(), others.len());
        assert_eq!(calls(&one), calls(&other));
        assert_eq!(one.cpu().departures, other.cpu().departures);
    }
    // Each kind has happened.
    let [count] = words(&mut one, COUNT);
    for (shift, what) in [(0, "calls"), (8, "events"), (16, "steps"), (24, "addresses")] {
        assert!(count >> shift & 0xff != 0, "{what}: {count:#x}");
    }
    let made = calls(&one)[IRET as usize - 1].1;
    let in_place = other.translator_stats().unwrap().in_place;
    assert!(in_place > made / 4, "{in_place} of {made} calls, and as many returns");
}

#[test]
fn a_return_that_is_somebody_elses_by_now_is_seen() {
    let runs = [false, true].map(|translate| {
        let mut machine = machine(translate);
        let mut seen = Vec::new();
        // The next return is one of the usual kind, or another.
        for round in 1..=30 {
            machine.run(&Limits { count: Some(round * 20_000), ..Limits::default() });
            set_disposition(&machine, Disposition::Outside);
            let exit = machine.run(&Limits { count: Some((round + 1) * 20_000), ..Limits::default() });
            assert_eq!(exit, Exit::Hypercall);
            let waiting = machine.domain().unwrap().hypercalls.take_waiting().unwrap();
            assert_eq!(u64::from(waiting.number), IRET);
            seen.push((machine.count(), machine.digest(), calls(&machine)));
            set_disposition(&machine, Disposition::Native);
            assert_eq!(machine.native_hypercall(waiting.number, waiting.args), Ok(None));
        }
        seen
    });
    assert_eq!(runs[0], runs[1]);
}

fn set_disposition(machine: &Machine, disposition: Disposition) {
    let domain = machine.domain().unwrap();
    domain.hypercalls.row(IRET).unwrap().set_disposition(disposition);
}

#[test]
fn the_time_of_returns_is_that_of_those_that_were_made_by_the_handler() {
    let mut machine = machine(true);
    machine.run(&Limits { count: Some(3_000_000), ..Limits::default() });
    let domain = machine.domain().unwrap();
    let of = |number| domain.hypercalls.row(number).unwrap().counters();
    let (iret, switch) = (of(IRET), of(u64::from(STACK_SWITCH)));
    // Far fewer came to the handler than there were, and each of those that did takes some time.
    assert!(iret.calls > 4 * switch.calls && iret.nanoseconds > 0, "{iret:?}, {switch:?}");
}
