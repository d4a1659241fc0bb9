//! vcpu_op and set_timer_op: runstate, timers, where vcpu_info lies (xen/include/public/vcpu.h).

use trapgate_engine::state::Vcpu;

use super::Done;
use super::guest::{Fields, read_u64, write};
use crate::cpu::{CpuTlb, PvCpu};
use crate::errno::Errno;
use crate::paging::Mfn;
use crate::public::shared;

/// `RUNSTATE_*`.
pub const RUNNING: u32 = 0;
pub const BLOCKED: u32 = 2;

/// Least period of the periodic timer in nanoseconds.
const LEAST_PERIOD: u64 = 1_000_000;

/// `vcpu_runstate_info`: what the vCPU does, since when, and how long it has done each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runstate {
    pub state: u32,
    pub entered: u64,
    pub times: [u64; 4],
}

impl Runstate {
    fn bytes(&self) -> [u8; 48] {
        let mut bytes = [0; 48];
        bytes[..4].copy_from_slice(&self.state.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.entered.to_le_bytes());
        for (time, place) in self.times.iter().zip(bytes[16..].chunks_exact_mut(8)) {
            place.copy_from_slice(&time.to_le_bytes());
        }
        bytes
    }

    /// The record with the time in the present state counted up to `now`.
    fn at(mut self, now: u64) -> Self {
        self.times[self.state as usize] += now.saturating_sub(self.entered);
        self.entered = now;
        self
    }
}

impl PvCpu {
    /// The vCPU starts or stops to run: counts the time and tells the guest.
    pub(crate) fn change_runstate(&mut self, cpu: &mut Vcpu, state: u32) {
        if self.runstate.state == state {
            return;
        }
        let now = cpu.machine_tsc();
        self.runstate = Runstate { state, ..self.runstate.at(now) };
        if self.runstate_area != 0 && cpu.kernel_mode() {
            // A guest that has unmapped its area is not told.
            let _ = cpu.copy_out(self.runstate_area, &self.runstate.bytes());
        }
    }
}

pub(super) fn vcpu_op(
    pv: &mut PvCpu,
    cpu: &mut Vcpu,
    command: u64,
    vcpu: u64,
    arg: u64,
) -> Result<u64, Errno> {
    if vcpu >= u64::from(pv.domain.config.vcpus) {
        return Err(Errno::NoEnt);
    }
    match command {
        // The one vCPU runs.
        0 => Err(Errno::Exist),
        1 => Ok(0),
        2 => {
            pv.domain.end(crate::public::Shutdown::PowerOff, None);
            Ok(0)
        }
        3 => Ok(1),
        4 => {
            let now = cpu.machine_tsc();
            write(cpu, arg, &pv.runstate.at(now).bytes()).map(|()| 0)
        }
        5 => {
            let area = read_u64(cpu, arg)?;
            let now = cpu.machine_tsc();
            pv.runstate = pv.runstate.at(now);
            write(cpu, area, &pv.runstate.bytes())?;
            pv.runstate_area = area;
            Ok(0)
        }
        6 => set_periodic(pv, cpu, arg),
        7 => {
            pv.domain.timers().period = 0;
            cpu.expect_timer();
            Ok(0)
        }
        8 => set_single_shot(pv, cpu, arg),
        9 => {
            pv.domain.timers().single_shot = None;
            cpu.expect_timer();
            Ok(0)
        }
        10 => register_vcpu_info(pv, cpu, arg),
        11 if arg != 0 => Err(Errno::Inval),
        11 => {
            // Delivered when the call returns.
            pv.nmi_pending = true;
            Ok(0)
        }
        13 => register_time_area(pv, cpu, arg),
        12 => Err(Errno::Inval),
        _ => Err(Errno::NoSys),
    }
}

fn set_periodic(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<u64, Errno> {
    let period = read_u64(cpu, arg)?;
    if period < LEAST_PERIOD {
        return Err(Errno::Inval);
    }
    let now = cpu.machine_tsc();
    let mut timers = pv.domain.timers();
    (timers.period, timers.next_period) = (period, now.saturating_add(period));
    drop(timers);
    cpu.expect_timer();
    Ok(0)
}

fn set_single_shot(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<u64, Errno> {
    // A time that has passed fires at once, whatever the flag "future" says.
    let at = Fields::<16>::read(cpu, arg)?.u64(0);
    pv.domain.timers().single_shot = Some(at);
    cpu.expect_timer();
    Ok(0)
}

/// set_timer_op: an absolute time, 0 for none.
pub(super) fn set_timer(pv: &PvCpu, cpu: &mut Vcpu, at: u64) -> Done {
    pv.domain.timers().legacy = (at != 0).then_some(at);
    cpu.expect_timer();
    Done::Value(0)
}

/// Keeps a copy of the pvclock record where user code can be shown it; it never changes, so it is written once. Address 0
/// ends that.
fn register_time_area(pv: &mut PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<u64, Errno> {
    let area = read_u64(cpu, arg)?;
    if area != 0 {
        write(cpu, area, &pv.domain.time_record())?;
    }
    pv.time_area = area;
    Ok(0)
}

/// Moves vcpu_info into a frame of the guest's, once: the frame can be nothing else from then on.
fn register_vcpu_info(pv: &mut PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<u64, Errno> {
    let fields = Fields::<16>::read(cpu, arg)?;
    let (mfn, offset) = (Mfn(fields.u64(0)), u64::from(fields.u32(8)));
    if pv.has_own_vcpu_info {
        return Err(Errno::Inval);
    }
    if offset % 8 != 0 || offset > 4096 - shared::VCPU_INFO_SIZE {
        return Err(Errno::Nxio);
    }
    let domain = &pv.domain;
    domain.paging().hold_writable(&mut CpuTlb(cpu), mfn)?;
    let memory = domain.memory();
    let page = memory.page(mfn.0 << 12).ok_or(Errno::Inval)?;
    let (from, to) = (domain.vcpu_info(), page.offset + offset);
    for word in 0..shared::VCPU_INFO_SIZE / 8 {
        memory.store::<u64>(to + word * 8, memory.load(from + word * 8));
    }
    domain.move_vcpu_info(to);
    pv.has_own_vcpu_info = true;
    // What came in between might have gone to either place: everything is to be looked at.
    memory.store::<u64>(to + shared::PENDING_SEL, u64::MAX);
    memory.store::<u8>(to + shared::UPCALL_PENDING, 1);
    domain.write_time(to);
    cpu.expect_interrupt();
    Ok(0)
}
