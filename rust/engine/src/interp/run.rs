//! The loop that runs blocks: budget, interrupts, traps, faults.
//!
//! One rule of counting (architecture, 4.7): a completed instruction counts 1, an iteration of a repeated one counts 1,
//! a faulting one and the delivery of an event count 0. An event is taken at the first boundary that allows it.

use trapgate_x86::insn::{Bits, Seg};
use trapgate_x86::msr::debugctl;
use trapgate_x86::op::Op;
use trapgate_x86::regs::{dr6, rflags};

use super::Uop;
use super::block::{self, Block, Cache};
use crate::exit::Exit;
use crate::fault::{Exception, Kind, Stop};
use crate::hooks::{HookEvent, HookId, HookKind};
use crate::mmu::shadow;
use crate::options::{TranslateOptions, TranslatorStats};
use crate::platform::Interrupt;
use crate::state::{BLOCK_RIP, NO_PAGE, Requests, Shadow, Vcpu};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::translate::{Next, Translator};

/// A vCPU with its interpreter.
#[derive(Debug)]
pub struct Engine {
    pub cpu: Vcpu,
    cache: Cache,
    paranoid: bool,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    translator: Option<Box<Translator>>,
}

/// Rounds of the loop without a completed instruction after which the caller gets to look around.
const MOST_IDLE: u32 = 10_000;

/// How a run of instructions inside one block ended.
pub(crate) enum Step {
    Done,
    Exit(Exit),
}

impl Engine {
    pub fn new(cpu: Vcpu) -> Self {
        Engine {
            cpu,
            cache: Cache::default(),
            paranoid: false,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            translator: None,
        }
    }

    /// In paranoid mode nothing is kept from one instruction to the next: no translation, no decoded block, no trust in
    /// the code counters, no interrupt or deadline that was looked up before. A guest sees no difference; what differs
    /// is a bug in one of these short cuts.
    pub fn set_paranoid(&mut self, on: bool) {
        self.paranoid = on;
        self.cache.set_longest_one(on);
    }

    /// Lets the binary translator run what it can, or not. False if this host cannot: it lacks instructions, or forbids
    /// executable memory.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn set_translate(&mut self, options: Option<TranslateOptions>) -> bool {
        let possible = Translator::is_possible();
        let make = |options| Translator::new(options).ok().map(Box::new);
        self.translator = options.filter(|_| possible).and_then(make);
        self.translator.is_some() == options.is_some()
    }

    /// This host has no translator.
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub fn set_translate(&mut self, options: Option<TranslateOptions>) -> bool {
        options.is_none()
    }

    /// This host has no translator.
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    pub fn translator_stats(&self) -> Option<TranslatorStats> {
        None
    }

    /// What the translator did, if there is one.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn translator_stats(&self) -> Option<TranslatorStats> {
        self.translator.as_ref().map(|translator| translator.stats)
    }

    /// Blocks decoded since the start.
    pub fn blocks_decoded(&self) -> u64 {
        self.cache.decoded
    }

    /// Bytes that decoded blocks may take.
    pub const BLOCK_BUDGET: usize = block::BUDGET;
    /// Bytes that translations may take.
    pub const TRANSLATION_BUDGET: usize = shadow::BUDGET;

    /// Bytes that decoded blocks take.
    pub fn block_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Bytes that translations take, the inline TLB apart, whose size is fixed.
    pub fn translation_bytes(&self) -> usize {
        self.cpu.shadow_tables.bytes() + self.cpu.shadow_pages.as_ref().map_or(0, |shadows| shadows.bytes())
    }

    /// Runs until the count `until` or a reason to leave. On [`Exit::Budget`] the platform's next event may be due
    /// before `until`.
    pub fn run(&mut self, until: u64) -> Exit {
        if self.paranoid { self.run_as::<true>(until) } else { self.run_as::<false>(until) }
    }

    #[inline(always)]
    fn run_as<const PARANOID: bool>(&mut self, until: u64) -> Exit {
        let cpu = &mut self.cpu;
        cpu.recheck = true;
        cpu.attention = true;
        // A handler that faults for ever completes no instruction: the caller must still get to look around.
        let (mut last, mut idle) = (cpu.count, 0u32);
        loop {
            if cpu.count != last {
                (last, idle) = (cpu.count, 0);
            } else {
                idle += 1;
                if idle > MOST_IDLE {
                    return Exit::Budget;
                }
            }
            if PARANOID {
                self.cache.distrust(cpu);
            }
            if cpu.attention || cpu.requests.any() {
                if let Some(exit) = boundary(cpu, until) {
                    return exit;
                }
                if cpu.halted {
                    // A line went up while the platform was asked for its next event.
                    continue;
                }
            }
            let room = cpu.limit.saturating_sub(cpu.count);
            if room == 0 {
                return Exit::Budget;
            }
            if PARANOID {
                // A repetition, too, is looked at after each iteration.
                cpu.limit = cpu.count + 1;
            }
            let mut most = if PARANOID || single(cpu) { 1 } else { room };
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            if !PARANOID
                && let Some(translator) = &mut self.translator
                && room > translator.least_room()
                && may_translate(cpu)
            {
                match translator.run(cpu, room) {
                    Next::Look => continue,
                    Next::Interpret => most = 1,
                    // The translator has used up some of the room, and a request may have come.
                    Next::Block if cpu.attention || cpu.count >= cpu.limit => continue,
                    Next::Block => most = cpu.limit - cpu.count,
                    Next::Exit(exit) => return exit,
                    Next::Fault => match beyond(cpu) {
                        Step::Exit(exit) => return exit,
                        Step::Done => continue,
                    },
                }
            }
            let step = match self.cache.find(cpu) {
                Ok(at) if self.cache.block(at).hooked && exec_hooks(cpu) => return Exit::Hook,
                Ok(at) => match inside(cpu, self.cache.block(at), most) {
                    0 => beyond(cpu),
                    most => run_block(cpu, &self.cache, at, most),
                },
                Err(stop) => stopped(cpu, stop, cpu.rip, cpu.rip),
            };
            if let Step::Exit(exit) = step {
                return exit;
            }
        }
    }
}

/// Whether translated code may run now: 64-bit code that nobody wants to see step by step.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn may_translate(cpu: &Vcpu) -> bool {
    !cpu.attention
        && cpu.mode.bits == Bits::B64
        && matches!(cpu.cpl, 0 | 3)
        && !cpu.hooks.exec
        && !cpu.alignment_checks()
}

/// Whether an execution hook on the next instruction is still to be served.
#[cold]
fn exec_hooks(cpu: &mut Vcpu) -> bool {
    let (rip, at) = (cpu.rip, cpu.linear_rip());
    if cpu.hooks.passed.take() == Some((cpu.count, at)) {
        return false;
    }
    let event = HookEvent { hook: HookId(0), rip: Some(rip), at, size: 1, value: 0 };
    let hit = cpu.hooks.hit(HookKind::Exec, event);
    if hit {
        // The instruction runs when the engine is entered again, unless something else happens first.
        cpu.hooks.passed = Some((cpu.count, at));
    }
    hit
}

/// Whether the next instruction must run alone.
#[inline(always)]
fn single(cpu: &Vcpu) -> bool {
    cpu.attention
        && (cpu.shadow != Shadow::None
            || cpu.flags.is_set(rflags::TF | rflags::RF)
            || cpu.code_breakpoints_armed())
}

/// How many of `most` instructions of a block lie inside the code segment: blocks know nothing of its limit.
#[inline(always)]
fn inside(cpu: &Vcpu, block: &Block, most: u64) -> u64 {
    if !cpu.mode.short_code {
        return most;
    }
    let room = (u64::from(cpu.segment(Seg::Cs).limit) + 1).saturating_sub(cpu.rip);
    if u64::from(block.len) <= room {
        return most;
    }
    most.min(block.uops.iter().take_while(|uop| u64::from(uop.next) <= room).count() as u64)
}

/// The next instruction does not lie inside the code segment, or leads out of the canonical addresses: #GP(0).
#[cold]
fn beyond(cpu: &mut Vcpu) -> Step {
    let rip = cpu.rip;
    cpu.fault = Some(Exception::gp(0));
    stopped(cpu, Stop::Fault, rip, rip)
}

/// Runs up to `most` instructions of a block.
#[inline(always)]
fn run_block(cpu: &mut Vcpu, cache: &Cache, at: u32, most: u64) -> Step {
    let block = cache.block(at);
    run_uops(cpu, &block.uops, block.pages(), most)
}

/// Runs one instruction that lies in the given host pages, for the translator.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn run_one(cpu: &mut Vcpu, uop: &Uop, page: u64, second: Option<u64>) -> Step {
    run_uops(cpu, std::slice::from_ref(uop), [page, second.unwrap_or(NO_PAGE)], 1)
}

/// Whether [`boundary`] would find nothing to do, for the translator. Attention is then over, as it is after that.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn is_calm(cpu: &mut Vcpu) -> bool {
    if cpu.requests.any() || cpu.hooks.waiting() {
        return false;
    }
    if !cpu.attention {
        return true;
    }
    let calm = !cpu.interrupt_waiting
        && !cpu.recheck
        && !cpu.halted
        && cpu.pending_debug == 0
        && cpu.shadow == Shadow::None
        && !cpu.flags.is_set(rflags::TF | rflags::RF)
        && !cpu.code_breakpoints_armed();
    cpu.attention = !calm;
    calm
}

/// Runs up to `most` of some instructions in a row, which lie in the given host pages.
#[inline(always)]
fn run_uops(cpu: &mut Vcpu, uops: &[Uop], pages: [u64; 2], most: u64) -> Step {
    let start = cpu.rip;
    let whole = uops.len() as u32;
    let len = uops.last().map_or(0, |last| last.next);
    let alone = cpu.attention;
    let before = Before { shadow: cpu.shadow, flags: cpu.flags.other() };
    cpu.regs[usize::from(BLOCK_RIP)] = start;
    cpu.running_pages = pages;
    cpu.end = if most < u64::from(whole) { most as u32 } else { whole };
    cpu.rip = start.wrapping_add(u64::from(len)) & cpu.mode.rip_mask;
    let mut i = 0;
    let result = loop {
        let uop = &uops[i as usize];
        cpu.at = i;
        if let Err(stop) = (uop.run)(cpu, uop) {
            break Err((stop, uop.offset));
        }
        i += 1;
        if i >= cpu.end {
            break Ok(());
        }
    };
    cpu.count = cpu.count.wrapping_add(u64::from(i)).wrapping_add(cpu.extra);
    if cpu.hooks.waiting() {
        settle_events(cpu, uops, start, i, &result);
    }
    cpu.extra = 0;
    cpu.at = 0;
    cpu.running_pages = [NO_PAGE; 2];
    match result {
        Ok(()) => {
            if i < whole {
                let next = uops[i as usize].offset;
                cpu.rip = start.wrapping_add(u64::from(next)) & cpu.mode.rip_mask;
            }
            if alone && let Some(last) = uops.get(i as usize - 1) {
                let next = start.wrapping_add(u64::from(last.next)) & cpu.mode.rip_mask;
                after_single(cpu, &before, last.insn.op, next);
            }
            Step::Done
        }
        Err((stop, offset)) => {
            let rip = start.wrapping_add(u64::from(offset)) & cpu.mode.rip_mask;
            if stop == Stop::Fault
                && let Some(Exception { kind: Kind::Software | Kind::Trap, .. }) = cpu.fault
            {
                let next = uops[i as usize].next;
                let behind = start.wrapping_add(u64::from(next)) & cpu.mode.rip_mask;
                return stopped(cpu, stop, rip, behind);
            }
            if stop == Stop::Restart && before.flags & rflags::TF != 0 && cpu.debugctl & debugctl::BTF == 0 {
                // An iteration of a repeated instruction is a step.
                cpu.pending_debug |= dr6::BS;
            }
            stopped(cpu, stop, rip, rip)
        }
    }
}

/// Says which instruction the latest hook events belong to; those of one that faulted are made again when it restarts.
#[cold]
fn settle_events(cpu: &mut Vcpu, uops: &[Uop], start: u64, done: u32, result: &Result<(), (Stop, u16)>) {
    let offset = match result {
        Ok(()) => uops.get(done as usize - 1).map_or(0, |uop| uop.offset),
        Err((Stop::Restart, offset)) => *offset,
        Err(_) => return cpu.hooks.abandoned(),
    };
    cpu.hooks.completed(start.wrapping_add(u64::from(offset)) & cpu.mode.rip_mask);
}

/// What held before an instruction that ran alone.
struct Before {
    shadow: Shadow,
    flags: u64,
}

/// After an instruction that ran alone: the shadow is over, RF is spent, a single-step trap is due.
/// `next` is where it leads if it is not a branch that was taken.
fn after_single(cpu: &mut Vcpu, before: &Before, op: Op, next: u64) {
    if before.shadow != Shadow::None && cpu.shadow == before.shadow {
        cpu.shadow = Shadow::None;
    }
    if before.flags & rflags::RF != 0 && !matches!(op, Op::Iret | Op::Popf) {
        cpu.flags.remove(rflags::RF);
    }
    // SYSCALL may mask TF, and then does not trap. With BTF only a branch that was taken does (SDM vol. 3, 18.4.4).
    let step = cpu.debugctl & debugctl::BTF == 0 || cpu.rip != next;
    if before.flags & rflags::TF != 0 && step && (op != Op::Syscall || cpu.flags.is_set(rflags::TF)) {
        cpu.pending_debug |= dr6::BS;
    }
    cpu.attention = true;
}

/// An instruction at `rip` did not complete; its event is to return to `back`.
#[cold]
fn stopped(cpu: &mut Vcpu, stop: Stop, rip: u64, back: u64) -> Step {
    cpu.rip = rip;
    match stop {
        Stop::Restart => {
            // An iteration is over but not the instruction: RF says so to whoever comes between (SDM vol. 3, 19.3.1.1).
            cpu.shadow = Shadow::None;
            cpu.flags.insert(rflags::RF);
            cpu.attention = true;
            Step::Done
        }
        Stop::Exit => Step::Exit(match cpu.exit.take() {
            Some(Exit::Unsupported { what, .. }) => Exit::Unsupported { what, rip },
            other => other.unwrap_or(Exit::Requested),
        }),
        Stop::Fault => {
            let Some(event) = cpu.fault.take() else { return Step::Done };
            let software = matches!(event.kind, Kind::Software | Kind::Trap);
            // Data breakpoints that an instruction met before it faulted are met again; those of MOV SS are kept.
            if cpu.shadow != Shadow::MovSs && !software {
                cpu.pending_debug = 0;
            }
            cpu.shadow = Shadow::None;
            cpu.attention = true;
            match cpu.deliver(event, back) {
                // INT n completes with its delivery; one whose delivery faults has not.
                Ok(itself) => {
                    cpu.count = cpu.count.wrapping_add(u64::from(software && itself));
                    Step::Done
                }
                Err(exit) => Step::Exit(exit),
            }
        }
    }
}

/// Delivers an event that returns to `back`; faults on the way belong to RIP.
fn deliver(cpu: &mut Vcpu, event: Exception, back: u64) -> Step {
    cpu.attention = true;
    match cpu.deliver(event, back) {
        Ok(_) => Step::Done,
        Err(exit) => Step::Exit(exit),
    }
}

/// Between blocks, when something asks for attention: requests, traps, interrupts, the next event.
#[cold]
fn boundary(cpu: &mut Vcpu, until: u64) -> Option<Exit> {
    if cpu.requests.any() {
        let what = cpu.requests.take();
        if what & Requests::INTERRUPT != 0 {
            cpu.interrupt_waiting = true;
        }
        if what & Requests::STOP != 0 {
            cpu.attention = true;
            return Some(Exit::Requested);
        }
    }
    if let Some(exit) = debug_traps(cpu) {
        return Some(exit);
    }
    if let Some(exit) = interrupts(cpu) {
        return Some(exit);
    }
    if cpu.hooks.waiting() {
        cpu.attention = true;
        return Some(Exit::Hook);
    }
    if cpu.recheck {
        cpu.recheck = false;
        cpu.limit = until.min(cpu.platform.next_event(cpu.count));
        // The platform may have raised a line while it looked.
        if cpu.requests.any() {
            cpu.recheck = true;
        }
    }
    if cpu.halted {
        if cpu.limit <= cpu.count {
            return Some(Exit::Budget);
        }
        return (!cpu.requests.any()).then_some(Exit::Halted);
    }
    if cpu.code_breakpoints_armed() && !cpu.flags.is_set(rflags::RF) && cpu.shadow != Shadow::MovSs {
        let hit = cpu.code_breakpoint(cpu.linear_rip());
        if hit != 0 {
            let event = cpu.debug_exception(hit, Kind::Fault);
            let rip = cpu.rip;
            if let Step::Exit(exit) = deliver(cpu, event, rip) {
                return Some(exit);
            }
        }
    }
    let waiting = cpu.interrupt_waiting && cpu.flags.is_set(rflags::IF);
    if cpu.hooks.waiting() {
        cpu.attention = true;
        return Some(Exit::Hook);
    }
    cpu.attention = waiting
        || cpu.recheck
        || cpu.pending_debug != 0
        || cpu.shadow != Shadow::None
        || cpu.flags.is_set(rflags::TF | rflags::RF)
        || cpu.code_breakpoints_armed();
    None
}

/// Traps of the instruction before: single step, data and port breakpoints. MOV SS holds them back.
fn debug_traps(cpu: &mut Vcpu) -> Option<Exit> {
    if cpu.pending_debug == 0 || cpu.shadow == Shadow::MovSs {
        return None;
    }
    let bits = std::mem::take(&mut cpu.pending_debug);
    let event = cpu.debug_exception(bits, Kind::Trap);
    cpu.halted = false;
    let rip = cpu.rip;
    match deliver(cpu, event, rip) {
        Step::Exit(exit) => Some(exit),
        Step::Done => None,
    }
}

/// Takes the most urgent interrupt that may be taken now.
fn interrupts(cpu: &mut Vcpu) -> Option<Exit> {
    if !cpu.interrupt_waiting || cpu.shadow == Shadow::MovSs {
        return None;
    }
    if cpu.is_para() {
        cpu.interrupt_waiting = false;
        return cpu.with_monitor(|monitor, cpu| monitor.interrupt(cpu)).and_then(Result::err);
    }
    let maskable = cpu.flags.is_set(rflags::IF) && cpu.shadow == Shadow::None;
    let nmi = !cpu.nmi_blocked;
    match cpu.platform.pending(cpu.count, nmi, maskable) {
        None => {
            if nmi && maskable {
                cpu.interrupt_waiting = false;
            }
            None
        }
        Some(interrupt) => {
            cpu.recheck = true;
            let vector = match interrupt {
                Interrupt::Nmi => {
                    cpu.nmi_blocked = true;
                    cpu.platform.acknowledge(cpu.count, interrupt);
                    2
                }
                Interrupt::Maskable => cpu.platform.acknowledge(cpu.count, interrupt)?,
            };
            cpu.halted = false;
            let event = Exception { vector, error: None, address: 0, kind: Kind::External };
            let rip = cpu.rip;
            match deliver(cpu, event, rip) {
                Step::Exit(exit) => Some(exit),
                Step::Done => None,
            }
        }
    }
}
