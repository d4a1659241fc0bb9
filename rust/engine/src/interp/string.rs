//! String instructions and their repetition (SDM vol. 2, REP).
//!
//! Every iteration counts as one instruction and is a point at which an interrupt or the end of the budget may come
//! between: then RIP stays at the instruction and the registers say how far it got. MOVS, STOS and LODS over RAM go
//! page by page.

use trapgate_x86::insn::{Bits, Insn, Prefixes, Seg};
use trapgate_x86::op::Op;
use trapgate_x86::regs::rflags;

use super::{Handler, Uop, by_width, mask};
use crate::fault::{Done, Stop};
use crate::memory::{PAGE, Word};
use crate::mmu::access::{Intent, Place};
use crate::state::{Shadow, Vcpu};

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// One iteration of a string instruction.
trait Step: 'static {
    /// Ends the repetition early as REPE and REPNE say.
    const COMPARES: bool = false;
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done;
    /// As many iterations at once as can be done quickly, at most `most`; 0 when only single ones will do.
    fn many<T: Word>(_: &mut Vcpu, _: &Uop, _: u64) -> Done<u64> {
        Ok(0)
    }
}

struct Movs;
struct Stos;
struct Lods;
struct Cmps;
struct Scas;
struct Ins;
struct Outs;

impl Vcpu {
    #[inline(always)]
    fn string_delta<T: Word>(&self) -> u64 {
        let size = T::SIZE as u64;
        if self.flags.is_set(rflags::DF) { size.wrapping_neg() } else { size }
    }

    /// Moves RSI or RDI on by the address size's rules.
    #[inline(always)]
    fn move_index(&mut self, reg: usize, delta: u64, u: &Uop) {
        let next = self.regs[reg].wrapping_add(delta) & u.address_mask;
        self.set_indexed(reg, next, u);
    }

    #[inline(always)]
    fn set_indexed(&mut self, reg: usize, value: u64, u: &Uop) {
        self.regs[reg] = if u.insn.addrsize == 2 {
            self.regs[reg] & !0xffff | value & 0xffff
        } else {
            value & u.address_mask
        };
    }

    #[inline(always)]
    fn source<T: Word>(&mut self, u: &Uop) -> Done<T> {
        let offset = self.regs[RSI] & u.address_mask;
        let seg = u.insn.mem.seg;
        let linear = self.linear_in(seg, offset, T::SIZE as u32, false)?;
        self.load(seg, linear)
    }

    #[inline(always)]
    fn destination<T: Word>(&mut self, u: &Uop, write: bool) -> Done<u64> {
        let offset = self.regs[RDI] & u.address_mask;
        self.linear_in(Seg::Es, offset, T::SIZE as u32, write)
    }
}

impl Step for Movs {
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let value: T = cpu.source(u)?;
        let to = cpu.destination::<T>(u, true)?;
        cpu.store(Seg::Es, to, value)?;
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RSI, delta, u);
        cpu.move_index(RDI, delta, u);
        Ok(())
    }

    fn many<T: Word>(cpu: &mut Vcpu, u: &Uop, most: u64) -> Done<u64> {
        let Some((from, to, n)) = run_of::<T>(cpu, u, most, true, true)? else { return Ok(0) };
        let bytes = n * T::SIZE as u64;
        cpu.memory.copy_host::<T>(from, to, n as usize);
        cpu.move_index(RSI, bytes, u);
        cpu.move_index(RDI, bytes, u);
        Ok(n)
    }
}

impl Step for Stos {
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let to = cpu.destination::<T>(u, true)?;
        let value = cpu.regs[0];
        cpu.store(Seg::Es, to, T::from_u64(value))?;
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RDI, delta, u);
        Ok(())
    }

    fn many<T: Word>(cpu: &mut Vcpu, u: &Uop, most: u64) -> Done<u64> {
        let Some((_, to, n)) = run_of::<T>(cpu, u, most, false, true)? else { return Ok(0) };
        let value = T::from_u64(cpu.regs[0]);
        cpu.memory.fill_words_host(to, n as usize, value);
        cpu.move_index(RDI, n * T::SIZE as u64, u);
        Ok(n)
    }
}

impl Step for Lods {
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let value: T = cpu.source(u)?;
        cpu.set_reg::<T>(0, value.to_u64());
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RSI, delta, u);
        Ok(())
    }
}

impl Step for Cmps {
    const COMPARES: bool = true;
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        // Where both fault, processors report ES:rDI.
        let to = cpu.destination::<T>(u, false)?;
        let b: T = cpu.load(Seg::Es, to)?;
        let a: T = cpu.source(u)?;
        super::alu::compare::<T>(&mut cpu.flags, a.to_u64(), b.to_u64());
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RSI, delta, u);
        cpu.move_index(RDI, delta, u);
        Ok(())
    }
}

impl Step for Scas {
    const COMPARES: bool = true;
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let to = cpu.destination::<T>(u, false)?;
        let b: T = cpu.load(Seg::Es, to)?;
        let a = cpu.regs[0] & mask::<T>();
        super::alu::compare::<T>(&mut cpu.flags, a, b.to_u64());
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RDI, delta, u);
        Ok(())
    }
}

impl Step for Ins {
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let port = cpu.regs[2] as u16;
        cpu.check_port(port, T::SIZE as u8)?;
        let to = cpu.destination::<T>(u, true)?;
        // The store must be possible before the port is read: reading has effects.
        cpu.check_alignment(to, T::SIZE)?;
        cpu.check_range(Seg::Es, to, T::SIZE as u64, Intent::Write)?;
        let value = cpu.port_in(port, T::SIZE as u8);
        cpu.store(Seg::Es, to, T::from_u64(u64::from(value)))?;
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RDI, delta, u);
        Ok(())
    }
}

impl Step for Outs {
    fn once<T: Word>(cpu: &mut Vcpu, u: &Uop) -> Done {
        let port = cpu.regs[2] as u16;
        cpu.check_port(port, T::SIZE as u8)?;
        let value: T = cpu.source(u)?;
        cpu.port_out(port, T::SIZE as u8, value.to_u64() as u32);
        let delta = cpu.string_delta::<T>();
        cpu.move_index(RSI, delta, u);
        Ok(())
    }
}

/// A run of elements that lies in one page of RAM at both ends: host offsets of the first ones and their number.
fn run_of<T: Word>(
    cpu: &mut Vcpu,
    u: &Uop,
    most: u64,
    reads: bool,
    writes: bool,
) -> Done<Option<(u64, u64, u64)>> {
    let size = T::SIZE as u64;
    // Limits are checked, and bases added, element by element.
    let long = cpu.mode.bits == Bits::B64;
    let own_base = reads && matches!(u.insn.mem.seg, Seg::Fs | Seg::Gs);
    let code = reads && u.insn.mem.seg == Seg::Cs;
    let segmented = if long { own_base && u.insn.addrsize != 8 } else { own_base || code || !cpu.mode.flat };
    if cpu.flags.is_set(rflags::DF) || most < 4 || u.insn.addrsize == 2 || segmented {
        return Ok(None);
    }
    let mut n = most;
    let mut ends = [0; 2];
    let sides = [(reads, u.insn.mem.seg, RSI, Intent::Read), (writes, Seg::Es, RDI, Intent::Write)];
    for (i, (used, seg, reg, intent)) in sides.into_iter().enumerate() {
        if !used {
            continue;
        }
        let offset = cpu.regs[reg] & u.address_mask;
        let linear = cpu.linear_in(seg, offset, T::SIZE as u32, intent == Intent::Write)?;
        n = n.min((PAGE - linear % PAGE) / size);
        if n < 4 {
            return Ok(None);
        }
        match cpu.quick_place(seg, linear, intent)? {
            Some(Place::Ram(host)) => ends[i] = host,
            _ => return Ok(None),
        }
    }
    Ok(Some((ends[0], ends[1], n)))
}

impl Vcpu {
    /// RAM behind a linear address, by the TLB or a walk; `None` where single steps must do.
    fn quick_place(&mut self, seg: Seg, linear: u64, intent: Intent) -> Done<Option<Place>> {
        let entry = self.tlb.entry(linear, self.user_view);
        let tag = if intent == Intent::Write { entry.write } else { entry.read };
        if tag == linear & !0xfff {
            return Ok(Some(Place::Ram(entry.host + linear % PAGE)));
        }
        if self.fast_paths_barred() {
            return Ok(None);
        }
        let place = self.place(seg, linear, intent, 1)?;
        // A page that holds cached code is written a word at a time, so that every write is noticed.
        let entry = self.tlb.entry(linear, self.user_view);
        let tag = if intent == Intent::Write { entry.write } else { entry.read };
        Ok((tag == linear & !0xfff).then_some(place))
    }

    /// Whether something wants to see every single access.
    fn fast_paths_barred(&self) -> bool {
        self.data_breakpoints_armed() || self.hooks.memory
    }
}

fn single<T: Word, S: Step>(cpu: &mut Vcpu, u: &Uop) -> Done {
    S::once::<T>(cpu, u)
}

fn repeated<T: Word, S: Step>(cpu: &mut Vcpu, u: &Uop) -> Done {
    let equal = u.insn.prefixes.contains(Prefixes::REP);
    let (extra, flags) = (cpu.extra, cpu.flags);
    // A trap or the end of a shadow comes after each iteration.
    let alone = cpu.flags.is_set(rflags::TF) || cpu.shadow != Shadow::None;
    let mut done = 0u64;
    loop {
        let left = cpu.regs[RCX] & u.address_mask;
        if left == 0 {
            // The last completed iteration is counted by the loop that runs the block.
            cpu.extra = extra + done.saturating_sub(1);
            return Ok(());
        }
        let budget = if alone { u64::from(done == 0) } else { cpu.limit.saturating_sub(cpu.count_now()) };
        if done > 0 && (budget == 0 || cpu.end == 0 || cpu.requests.any()) {
            // Who comes between sees the flags that a fault would push, however often the run was parted.
            cpu.flags = flags;
            return Err(Stop::Restart);
        }
        let n = S::many::<T>(cpu, u, left.min(budget.max(1)));
        let n = match n {
            Ok(0) => S::once::<T>(cpu, u).map(|()| 1),
            n => n,
        };
        let n = match n {
            Ok(n) => n,
            Err(stop) => {
                // The compares of the completed iterations do not show in the flags that a fault pushes (SDM vol. 2, REP).
                cpu.flags = flags;
                return Err(stop);
            }
        };
        let rest = left - n;
        cpu.set_indexed(RCX, rest, u);
        done += n;
        cpu.extra = extra + done;
        let stop = S::COMPARES && cpu.flags.zf() != equal;
        if rest == 0 || stop {
            cpu.extra = extra + done - 1;
            return Ok(());
        }
    }
}

fn choose<S: Step>(insn: &Insn) -> Handler {
    let rep = insn.prefixes.intersects(Prefixes::REP | Prefixes::REPNE);
    by_width!(insn.opsize, T => if rep { repeated::<T, S> } else { single::<T, S> })
}

/// The handler of a string instruction.
pub(super) fn string(insn: &Insn) -> Handler {
    match insn.op {
        Op::Movs => choose::<Movs>(insn),
        Op::Stos => choose::<Stos>(insn),
        Op::Lods => choose::<Lods>(insn),
        Op::Cmps => choose::<Cmps>(insn),
        Op::Scas => choose::<Scas>(insn),
        Op::Ins => choose::<Ins>(insn),
        _ => choose::<Outs>(insn),
    }
}
