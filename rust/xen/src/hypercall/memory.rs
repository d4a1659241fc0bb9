//! memory_op: reservations, the memory map, where M2P is (xen/include/public/memory.h).

use trapgate_engine::state::Vcpu;

use super::Done;
use super::guest::{Fields, read_u64, write, write_u32, write_u64};
use crate::cpu::{CpuTlb, PvCpu};
use crate::errno::Errno;
use crate::paging::Mfn;
use crate::public::{DOMID_SELF, HYPERVISOR_START, M2P_END};

/// Extents after which the vCPU gets to look around.
const MOST_AT_ONCE: u64 = 256;
/// Bits of the command; above them the call keeps how far it has come (`MEMOP_CMD_MASK`).
const COMMAND_BITS: u32 = 6;
const COMMAND: u64 = (1 << COMMAND_BITS) - 1;

pub(super) fn memory_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Done {
    let begun = command >> COMMAND_BITS;
    match command & COMMAND {
        // increase_reservation gives frames without a place for them: of no use to a guest of this kind.
        0 => Done::Value(0),
        1 => reservation(pv, cpu, arg, begun, 1),
        6 => reservation(pv, cpu, arg, begun, 6),
        2 => Done::Value(pv.domain.layout.max_mfn()),
        3 | 4 => own_domid(pv, cpu, arg)
            .map(|()| {
                let paging = pv.domain.paging();
                if command == 3 { paging.owned_frames() } else { paging.maximum() }
            })
            .into(),
        5 => Done::Value(Errno::NoSys.code()),
        7 => Done::Value(Errno::Inval.code()),
        9 => memory_map(pv, cpu, arg).into(),
        10 => Done::Value(Errno::Perm.code()),
        12 => machphys_mapping(pv, cpu, arg).into(),
        _ => Done::Value(Errno::NoSys.code()),
    }
}

fn own_domid(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let domid = Fields::<2>::read(cpu, arg)?.u16(0);
    if domid == DOMID_SELF || domid == pv.domain.config.domid { Ok(()) } else { Err(Errno::Perm) }
}

/// decrease_reservation and populate_physmap: gives how many extents were done, `begun` of them before.
fn reservation(pv: &mut PvCpu, cpu: &mut Vcpu, arg: u64, begun: u64, command: u64) -> Done {
    let Ok(fields) = Fields::<32>::read(cpu, arg) else { return Done::Value(Errno::Fault.code()) };
    let (list, count, order, domid) = (fields.u64(0), fields.u64(8), fields.u32(16), fields.u16(24));
    let count = count.min(u64::from(u32::MAX));
    if domid != DOMID_SELF && domid != pv.domain.config.domid || order > 9 || begun > count {
        return Done::Value(begun);
    }
    let mut done = begun;
    while done < count {
        if done - begun >= (MOST_AT_ONCE >> order).max(1) {
            return Done::Again([command | done << COMMAND_BITS, arg, 0, 0, 0]);
        }
        let at = list.wrapping_add(done * 8);
        let moved = if command == 1 { give_back(pv, cpu, at, order) } else { populate(pv, cpu, at, order) };
        if !moved {
            break;
        }
        done += 1;
    }
    Done::Value(done)
}

/// Gives one extent back; false ends the call.
fn give_back(pv: &PvCpu, cpu: &mut Vcpu, at: u64, order: u32) -> bool {
    let Ok(first) = read_u64(cpu, at) else { return false };
    let mut paging = pv.domain.paging();
    (0..1u64 << order).all(|i| {
        first
            .checked_add(i)
            .is_some_and(|mfn| paging.decrease_reservation(&mut CpuTlb(cpu), Mfn(mfn)).is_ok())
    })
}

/// Hands out one extent. Frames of different orders need not be contiguous here, so only single ones are.
fn populate(pv: &PvCpu, cpu: &mut Vcpu, at: u64, order: u32) -> bool {
    if order != 0 {
        return false;
    }
    let Ok(pfn) = read_u64(cpu, at) else { return false };
    let mfn = {
        let mut paging = pv.domain.paging();
        if pv.domain.take_stale_tlb() {
            cpu.flush_tlb();
        }
        paging.populate(pfn)
    };
    match mfn {
        Some(mfn) if write_u64(cpu, at, mfn.0).is_ok() => true,
        Some(mfn) => {
            // The guest cannot be told: it never owned the frame.
            let _ = pv.domain.paging().decrease_reservation(&mut CpuTlb(cpu), mfn);
            false
        }
        None => false,
    }
}

/// The memory map: one range of RAM up to the maximum reservation.
fn memory_map(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let fields = Fields::<16>::read(cpu, arg)?;
    let (room, buffer) = (fields.u32(0), fields.u64(8));
    if room < 1 {
        return Err(Errno::Inval);
    }
    let mut entry = [0u8; 20];
    entry[8..16].copy_from_slice(&(pv.domain.paging().maximum() * 4096).to_le_bytes());
    entry[16] = 1;
    write(cpu, buffer, &entry)?;
    write_u32(cpu, arg, 1)
}

fn machphys_mapping(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let values = [HYPERVISOR_START, M2P_END, pv.domain.layout.max_mfn()];
    values.iter().zip(0u64..).try_for_each(|(value, i)| write_u64(cpu, arg.wrapping_add(i * 8), *value))
}
