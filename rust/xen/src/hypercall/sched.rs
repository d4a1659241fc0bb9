//! sched_op: yield, block, shutdown, poll (xen/include/public/sched.h).

use trapgate_engine::exit::Exit;
use trapgate_engine::state::Vcpu;

use super::guest::Fields;
use super::{Done, vcpu};
use crate::cpu::PvCpu;
use crate::domain::work;
use crate::errno::Errno;
use crate::public::Shutdown;

const MOST_POLLED: u32 = 128;

pub(super) fn sched_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Result<Done, Exit> {
    Ok(match command {
        // Whoever spins here waits for a back-end: it gets its turn.
        0 => {
            pv.domain.ask(work::YIELD);
            Done::Value(0)
        }
        1 => {
            pv.set_upcall_mask(false);
            if !pv.domain.upcall_due() {
                pv.change_runstate(cpu, vcpu::BLOCKED);
                cpu.halt();
            }
            Done::Value(0)
        }
        2 => match Fields::<4>::read(cpu, arg).map(|fields| Shutdown::from_code(fields.u32(0))) {
            Ok(Some(reason)) => {
                pv.domain.end(reason, None);
                Done::Value(0)
            }
            Ok(None) => Done::Value(Errno::Inval.code()),
            Err(error) => Done::Value(error.code()),
        },
        3 => poll(pv, cpu, arg).into(),
        // A reason for the toolstack, kept for a shutdown that follows.
        5 => Done::Value(0),
        7 => Done::Value(Errno::Perm.code()),
        _ => Done::Value(Errno::NoSys.code()),
    })
}

/// Waits until one of some ports is pending, an event can be delivered, or a time is reached.
fn poll(pv: &mut PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let fields = Fields::<24>::read(cpu, arg)?;
    let (list, count, timeout) = (fields.u64(0), fields.u32(8), fields.u64(16));
    if count > MOST_POLLED {
        return Err(Errno::Inval);
    }
    let mut bytes = vec![0u8; count as usize * 4];
    cpu.copy_in(list, &mut bytes).map_err(|_| Errno::Fault)?;
    let ports: Vec<u32> =
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if ports.iter().any(|&port| pv.domain.channel(port).is_none()) {
        return Err(Errno::Inval);
    }
    pv.domain.ask(work::YIELD);
    pv.domain.events().polled.clone_from(&ports);
    pv.polling = Some(timeout);
    if pv.poll_is_over(cpu) {
        pv.stop_polling();
        return Ok(());
    }
    pv.domain.timers().poll = (timeout != 0).then_some(timeout);
    cpu.expect_timer();
    pv.change_runstate(cpu, vcpu::BLOCKED);
    cpu.halt();
    Ok(())
}

impl PvCpu {
    /// Whether what a poll waits for has come.
    fn poll_is_over(&self, cpu: &mut Vcpu) -> bool {
        let Some(timeout) = self.polling else { return false };
        let ports = self.domain.events().polled.clone();
        ports.iter().any(|&port| self.domain.is_pending(port))
            || self.domain.upcall_due()
            || timeout != 0 && timeout <= cpu.machine_tsc()
    }

    fn stop_polling(&mut self) {
        self.polling = None;
        self.domain.events().polled.clear();
        self.domain.timers().poll = None;
    }

    /// Something has happened while the vCPU was blocked: a poll may end with it.
    pub(crate) fn end_poll(&mut self, cpu: &mut Vcpu) {
        if self.poll_is_over(cpu) {
            self.stop_polling();
            self.change_runstate(cpu, vcpu::RUNNING);
            cpu.halted = false;
        }
    }
}
