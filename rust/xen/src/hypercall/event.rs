//! event_channel_op (xen/include/public/event_channel.h).

use trapgate_engine::state::Vcpu;

use super::guest::{Fields, write, write_u32};
use crate::cpu::PvCpu;
use crate::errno::Errno;
use crate::event::Channel;
use crate::public::DOMID_SELF;

pub(super) fn event_channel_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Result<(), Errno> {
    let domain = &pv.domain;
    let own = |id: u16| id == DOMID_SELF || id == domain.config.domid;
    match command {
        0 => {
            let fields = Fields::<12>::read(cpu, arg)?;
            let port = domain.bind_interdomain(fields.u16(0), fields.u32(4))?;
            write_u32(cpu, arg.wrapping_add(8), port)
        }
        1 => {
            let fields = Fields::<12>::read(cpu, arg)?;
            let port = domain.bind_virq(fields.u32(0), fields.u32(4))?;
            cpu.expect_timer();
            write_u32(cpu, arg.wrapping_add(8), port)
        }
        2 => Err(Errno::Perm),
        3 => domain.close_port(port(cpu, arg)?),
        4 => domain.send(port(cpu, arg)?),
        5 => status(pv, cpu, arg),
        6 => {
            let fields = Fields::<8>::read(cpu, arg)?;
            if !own(fields.u16(0)) {
                return Err(Errno::Perm);
            }
            if !domain.allows_remote(fields.u16(2)) {
                return Err(Errno::Perm);
            }
            let port = domain.allocate_unbound(fields.u16(2))?;
            write_u32(cpu, arg.wrapping_add(4), port)
        }
        7 => {
            let vcpu = Fields::<8>::read(cpu, arg)?.u32(0);
            let port = domain.bind_ipi(vcpu)?;
            write_u32(cpu, arg.wrapping_add(4), port)
        }
        8 => {
            let fields = Fields::<8>::read(cpu, arg)?;
            if fields.u32(4) >= domain.config.vcpus {
                return Err(Errno::NoEnt);
            }
            match domain.channel(fields.u32(0)) {
                Some(Channel::Unbound { .. } | Channel::Interdomain { .. }) => Ok(()),
                _ => Err(Errno::Inval),
            }
        }
        9 => domain.unmask(port(cpu, arg)?),
        10 => {
            if !own(Fields::<2>::read(cpu, arg)?.u16(0)) {
                return Err(Errno::Perm);
            }
            domain.reset_ports();
            Ok(())
        }
        _ => Err(Errno::NoSys),
    }
}

fn port(cpu: &mut Vcpu, arg: u64) -> Result<u32, Errno> {
    Fields::<4>::read(cpu, arg).map(|fields| fields.u32(0))
}

/// EVTCHNOP_status: dom, port; status, vCPU, and what it is bound to.
fn status(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let fields = Fields::<24>::read(cpu, arg)?;
    let domid = fields.u16(0);
    if domid != DOMID_SELF && domid != pv.domain.config.domid {
        return Err(Errno::Perm);
    }
    let (code, first, second): (u32, u32, u32) = match pv.domain.channel(fields.u32(4)) {
        None => (0, 0, 0),
        Some(Channel::Closed) => (0, 0, 0),
        Some(Channel::Unbound { remote }) => (1, u32::from(remote), 0),
        Some(Channel::Interdomain { remote, port }) => (2, u32::from(remote), port),
        Some(Channel::Virq(number)) => (4, number, 0),
        Some(Channel::Ipi) => (5, 0, 0),
    };
    let mut answer = [0u8; 16];
    answer[..4].copy_from_slice(&code.to_le_bytes());
    answer[8..12].copy_from_slice(&first.to_le_bytes());
    answer[12..].copy_from_slice(&second.to_le_bytes());
    write(cpu, arg.wrapping_add(8), &answer)
}
