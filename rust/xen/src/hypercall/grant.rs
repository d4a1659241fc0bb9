//! grant_table_op (xen/include/public/grant_table.h): what a front-end needs. Mapping and copying foreign grants is for
//! back-ends, which are ours.

use trapgate_engine::state::Vcpu;

use super::guest::{Fields, write, write_u64};
use crate::cpu::PvCpu;
use crate::errno::Errno;
use crate::public::DOMID_SELF;

/// `GNTST_*`.
const OKAY: i16 = 0;
const GENERAL_ERROR: i16 = -1;
const BAD_DOMAIN: i16 = -2;

pub(super) fn grant_table_op(
    pv: &mut PvCpu,
    cpu: &mut Vcpu,
    command: u64,
    arg: u64,
    count: u64,
) -> Result<(), Errno> {
    match command {
        2 | 6 if count != 1 => Err(Errno::Inval),
        2 => setup_table(pv, cpu, arg),
        // Only written to a log, which is nobody's here.
        3 => Ok(()),
        6 => query_size(pv, cpu, arg),
        8 => match Fields::<4>::read(cpu, arg)?.u32(0) {
            1 => Ok(()),
            _ => Err(Errno::NoSys),
        },
        10 => {
            let domid = Fields::<8>::read(cpu, arg)?.u16(0);
            if !is_self(pv, domid) {
                return Err(Errno::Perm);
            }
            write(cpu, arg.wrapping_add(4), &1u32.to_le_bytes())
        }
        _ => Err(Errno::NoSys),
    }
}

fn is_self(pv: &PvCpu, domid: u16) -> bool {
    domid == DOMID_SELF || domid == pv.domain.config.domid
}

fn setup_table(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let fields = Fields::<24>::read(cpu, arg)?;
    let (count, list) = (u64::from(fields.u32(4)), fields.u64(16));
    let status = if !is_self(pv, fields.u16(0)) {
        BAD_DOMAIN
    } else if pv.domain.grants().grow(count) {
        OKAY
    } else {
        GENERAL_ERROR
    };
    if status == OKAY {
        for index in 0..count {
            let mfn = pv.domain.grants().frame(index);
            write_u64(cpu, list.wrapping_add(index * 8), mfn)?;
        }
    }
    write(cpu, arg.wrapping_add(8), &status.to_le_bytes())
}

fn query_size(pv: &PvCpu, cpu: &mut Vcpu, arg: u64) -> Result<(), Errno> {
    let domid = Fields::<16>::read(cpu, arg)?.u16(0);
    let (used, most) = pv.domain.grants().size();
    let status = if is_self(pv, domid) { OKAY } else { BAD_DOMAIN };
    let mut answer = [0u8; 10];
    answer[..4].copy_from_slice(&(used as u32).to_le_bytes());
    answer[4..8].copy_from_slice(&(most as u32).to_le_bytes());
    answer[8..].copy_from_slice(&status.to_le_bytes());
    write(cpu, arg.wrapping_add(4), &answer)
}
