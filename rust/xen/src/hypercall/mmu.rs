//! Calls on page tables: mmu_update, update_va_mapping, mmuext_op, update_descriptor.

use trapgate_engine::state::Vcpu;

use super::guest::{Fields, read_u32, read_u64, write_u32};
use super::{Args, Done};
use crate::cpu::{CpuTlb, PvCpu};
use crate::errno::Errno;
use crate::paging::Mfn;
use crate::public::DOMID_SELF;

/// In a count: the call was made before, and what it had done then stands in `done` already (`MMU_UPDATE_PREEMPTED`).
const PREEMPTED: u64 = 1 << 31;
/// Elements after which the vCPU gets to look around.
const MOST_AT_ONCE: u64 = 512;

/// Whether a `foreigndom` argument names the caller: its low half whose frames are mapped, its high half whose tables.
fn is_self(pv: &PvCpu, domain: u64) -> bool {
    let own = |id: u64| id == u64::from(DOMID_SELF) || id == u64::from(pv.domain.config.domid);
    // The high half is the table's owner plus one, 0 for the caller.
    own(domain & 0xffff) && (domain >> 16 & 0xffff == 0 || own((domain >> 16 & 0xffff) - 1))
}

/// Goes through an array of elements, at most so many at once, and reports how many were done.
fn each(
    cpu: &mut Vcpu,
    args: Args,
    size: u64,
    mut element: impl FnMut(&mut Vcpu, u64) -> Result<(), Errno>,
) -> Done {
    let [list, count, done_at, ..] = args;
    let left = count & (PREEMPTED - 1);
    let before = if count & PREEMPTED != 0 && done_at != 0 { read_u32(cpu, done_at).unwrap_or(0) } else { 0 };
    let mut result = Ok(());
    let mut done = 0;
    while done < left.min(MOST_AT_ONCE) && result.is_ok() {
        result = element(cpu, list.wrapping_add(done * size));
        done += u64::from(result.is_ok());
    }
    if done_at != 0 && write_u32(cpu, done_at, before.wrapping_add(done as u32)).is_err() {
        return Done::Value(Errno::Fault.code());
    }
    if result.is_ok() && done < left {
        let mut again = args;
        again[0] = list.wrapping_add(done * size);
        again[1] = (left - done) | PREEMPTED;
        return Done::Again(again);
    }
    result.into()
}

/// mmu_update(reqs, count, done, foreigndom).
pub(super) fn mmu_update(pv: &mut PvCpu, cpu: &mut Vcpu, args: Args) -> Done {
    if !is_self(pv, args[3]) {
        return Done::Value(Errno::Perm.code());
    }
    let domain = &pv.domain;
    each(cpu, args, 16, |cpu, at| {
        let ptr = read_u64(cpu, at)?;
        let val = read_u64(cpu, at.wrapping_add(8))?;
        domain.paging().mmu_update(&mut CpuTlb(cpu), ptr, val)
    })
}

/// update_va_mapping(va, pte, flags).
pub(super) fn update_va_mapping(
    pv: &mut PvCpu,
    cpu: &mut Vcpu,
    va: u64,
    pte: u64,
    flags: u64,
) -> Result<(), Errno> {
    pv.domain.paging().update_va_mapping(&mut CpuTlb(cpu), 0, va, pte)?;
    // UVMF_*: the low two bits say what to flush, the rest whose: with one vCPU it is always this one.
    match flags & 3 {
        1 => cpu.flush_guest(),
        2 => cpu.drop_page(va),
        _ => {}
    }
    Ok(())
}

/// update_descriptor(maddr, descriptor).
pub(super) fn update_descriptor(pv: &mut PvCpu, maddr: u64, value: u64) -> Result<(), Errno> {
    pv.known_return = None;
    pv.domain.paging().update_descriptor(maddr, value)
}

/// mmuext_op(ops, count, done, foreigndom).
pub(super) fn mmuext_op(pv: &mut PvCpu, cpu: &mut Vcpu, args: Args) -> Done {
    if !is_self(pv, args[3]) {
        return Done::Value(Errno::Perm.code());
    }
    each(cpu, args, 24, |cpu, at| {
        let op = Fields::<24>::read(cpu, at)?;
        one_op(pv, cpu, op.u32(0), op.u64(8), op.u64(16))
    })
}

/// One `mmuext_op`.
fn one_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u32, first: u64, second: u64) -> Result<(), Errno> {
    let paging = || pv.domain.paging();
    match command {
        0..=3 => paging().pin(&mut CpuTlb(cpu), command as u8 + 1, Mfn(first)),
        4 => paging().unpin(&mut CpuTlb(cpu), Mfn(first)),
        5 => pv.new_kernel_root(cpu, Mfn(first)),
        15 => {
            paging().set_user_root(&mut CpuTlb(cpu), 0, Mfn(first))?;
            pv.user_root = first << 12;
            Ok(())
        }
        // Local, by bitmap, all: there is one vCPU.
        6 | 8 | 10 => {
            if command == 8 {
                bitmap(cpu, second)?;
            }
            cpu.flush_guest();
            Ok(())
        }
        7 | 9 | 11 => {
            if command == 9 {
                bitmap(cpu, second)?;
            }
            cpu.drop_page(first);
            Ok(())
        }
        // FLUSH_CACHE and its global form are for domains that own devices.
        12 | 18 => Err(Errno::Access),
        13 => pv.set_ldt(cpu, first, second & 0xffff_ffff),
        16 => paging().clear_page(Mfn(first)),
        17 => paging().copy_page(Mfn(first), Mfn(second)),
        19 | 20 => Err(Errno::NotSupp),
        _ => Err(Errno::NoSys),
    }
}

/// Reads the bitmap of vCPUs, which must be there even where it says nothing new.
fn bitmap(cpu: &mut Vcpu, at: u64) -> Result<u64, Errno> {
    read_u64(cpu, at)
}
