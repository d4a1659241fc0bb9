//! xen_version: who we say we are (xen/include/public/version.h, features.h).

use trapgate_engine::state::Vcpu;

use super::guest::{Fields, write, write_u32, write_u64};
use crate::cpu::PvCpu;
use crate::errno::Errno;
use crate::public::HYPERVISOR_START;

/// 4.17, whose interface this is.
pub const VERSION: u32 = 4 << 16 | 17;

/// mmu_pt_update_preserve_ad 5, gnttab_map_avail_bits 7, pae_pgdir_above_4gb 4, highmem_assist 6, memory_op_vnode 13.
const FEATURES: u32 = 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17;

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (place, byte) in bytes.iter_mut().zip(text.bytes()).take(N - 1) {
        *place = byte;
    }
    bytes
}

pub(super) fn xen_version(pv: &PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Result<u64, Errno> {
    match command {
        0 => return Ok(u64::from(VERSION)),
        1 => write(cpu, arg, &padded::<16>(".0-trapgate"))?,
        2 => write(cpu, arg, &compile_info())?,
        3 => write(cpu, arg, &padded::<1024>("xen-3.0-x86_64 "))?,
        4 => write(cpu, arg, &padded::<64>("unavailable"))?,
        5 => write_u64(cpu, arg, HYPERVISOR_START)?,
        6 => {
            if Fields::<8>::read(cpu, arg)?.u32(0) != 0 {
                return Err(Errno::Inval);
            }
            write_u32(cpu, arg.wrapping_add(4), FEATURES)?;
        }
        7 => return Ok(4096),
        8 => write(cpu, arg, &pv.domain.config.handle)?,
        9 => return Err(Errno::Perm),
        10 => return Err(Errno::NoData),
        _ => return Err(Errno::NoSys),
    }
    Ok(0)
}

/// Compiler, who, where, when: 64, 16, 32 and 32 bytes.
fn compile_info() -> [u8; 144] {
    let mut info = [0; 144];
    info[..64].copy_from_slice(&padded::<64>("rustc"));
    info[64..80].copy_from_slice(&padded::<16>("trapgate"));
    info[80..112].copy_from_slice(&padded::<32>("localhost"));
    info[112..].copy_from_slice(&padded::<32>(env!("CARGO_PKG_VERSION")));
    info
}
