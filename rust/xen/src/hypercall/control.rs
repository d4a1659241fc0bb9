//! Calls that set the processor up: trap table, callbacks, GDT, debug registers; and the small ones.

use trapgate_engine::mmu::access::canonical;
use trapgate_engine::state::Vcpu;
use trapgate_x86::exception::Vector;
use trapgate_x86::regs::{cr4, dr6, dr7};

use super::Done;
use super::guest::Fields;
use crate::cpu::{Callback, PvCpu, Trap, assist};
use crate::errno::Errno;
use crate::paging::Mfn;
use crate::public::{FIRST_RESERVED_GDT_ENTRY, HYPERVISOR_END, HYPERVISOR_START};

/// The lines that console_io may write between two looks around, in bytes.
const MOST_CONSOLE: u64 = 4096;

/// set_trap_table(traps): entries of 16 bytes up to one whose address is 0; without a list all are cleared.
pub(super) fn set_trap_table(pv: &mut PvCpu, cpu: &mut Vcpu, list: u64) -> Result<(), Errno> {
    if list == 0 {
        pv.traps.fill(Trap::default());
        return Ok(());
    }
    // A list has an entry for each vector at most; a longer one goes round for ever.
    for index in 0..=256 {
        let entry = Fields::<16>::read(cpu, list.wrapping_add(index * 16))?;
        let address = entry.u64(8);
        if address == 0 {
            return Ok(());
        }
        if !canonical(address) {
            return Err(Errno::Inval);
        }
        let flags = entry.u8(1);
        pv.traps[usize::from(entry.u8(0))] = Trap { dpl: flags & 3, masks_events: flags & 4 != 0, address };
    }
    Err(Errno::Inval)
}

/// set_gdt(frames, entries).
pub(super) fn set_gdt(pv: &mut PvCpu, cpu: &mut Vcpu, list: u64, entries: u64) -> Result<(), Errno> {
    if entries > FIRST_RESERVED_GDT_ENTRY as u64 {
        return Err(Errno::Inval);
    }
    let mut frames = Vec::with_capacity(14);
    for index in 0..entries.div_ceil(512) {
        frames.push(Mfn(super::guest::read_u64(cpu, list.wrapping_add(index * 8))?));
    }
    pv.set_gdt(cpu, &frames)
}

/// set_callbacks(event, failsafe, syscall): the old form of callback_op.
pub(super) fn set_callbacks(pv: &mut PvCpu, event: u64, failsafe: u64, syscall: u64) -> Result<(), Errno> {
    if ![event, failsafe, syscall].into_iter().all(canonical) {
        return Err(Errno::Inval);
    }
    let entry = |address, masks_events| Callback { masks_events, address };
    pv.callbacks.event = entry(event, true);
    pv.callbacks.failsafe = entry(failsafe, false);
    pv.callbacks.syscall = entry(syscall, false);
    Ok(())
}

/// callback_op(command, arg): 0 registers, 1 unregisters.
pub(super) fn callback_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Result<(), Errno> {
    match command {
        0 => {
            let fields = Fields::<16>::read(cpu, arg)?;
            let address = fields.u64(8);
            let entry = Callback { masks_events: fields.u16(2) & 1 != 0, address };
            if !canonical(address) {
                return Err(Errno::Inval);
            }
            let place = match fields.u16(0) {
                0 => &mut pv.callbacks.event,
                1 => &mut pv.callbacks.failsafe,
                2 => &mut pv.callbacks.syscall,
                4 => {
                    set_nmi_handler(pv, address);
                    return Ok(());
                }
                5 => &mut pv.callbacks.sysenter,
                7 => &mut pv.callbacks.syscall32,
                _ => return Err(Errno::NoSys),
            };
            *place = entry;
            Ok(())
        }
        1 => match Fields::<4>::read(cpu, arg)?.u16(0) {
            4 => {
                pv.traps[Vector::Nmi as usize] = Trap::default();
                Ok(())
            }
            0 | 1 | 2 | 5 | 7 => Err(Errno::Inval),
            _ => Err(Errno::NoSys),
        },
        _ => Err(Errno::NoSys),
    }
}

/// nmi_op(command, arg): registers or unregisters the handler of NMIs.
pub(super) fn nmi_op(pv: &mut PvCpu, command: u64, address: u64) -> Result<(), Errno> {
    match command {
        0 if !canonical(address) => Err(Errno::Inval),
        0 => {
            set_nmi_handler(pv, address);
            Ok(())
        }
        1 => {
            pv.traps[Vector::Nmi as usize] = Trap::default();
            Ok(())
        }
        _ => Err(Errno::NoSys),
    }
}

/// The handler of NMIs is an entry of the trap table, by whichever call it comes; by these two it masks events.
fn set_nmi_handler(pv: &mut PvCpu, address: u64) {
    pv.traps[Vector::Nmi as usize] = Trap { dpl: 0, masks_events: true, address };
}

/// fpu_taskswitch(set): CR0.TS.
pub(super) fn fpu_taskswitch(cpu: &mut Vcpu, set: bool) -> Done {
    cpu.set_task_switched(set);
    Done::Value(0)
}

/// vm_assist(command, type): 0 enables, 1 disables.
pub(super) fn vm_assist(pv: &mut PvCpu, command: u64, kind: u64) -> Result<(), Errno> {
    let bit = u32::try_from(kind).ok().and_then(|kind| 1u32.checked_shl(kind)).unwrap_or(0);
    if bit & assist::KNOWN == 0 {
        return Err(Errno::Inval);
    }
    match command {
        0 => pv.assist |= bit,
        1 => pv.assist &= !bit,
        _ => return Err(Errno::NoSys),
    }
    Ok(())
}

/// physdev_op(command, arg): virtual IOPL and the bitmap of ports; there are no devices otherwise.
pub(super) fn physdev_op(pv: &mut PvCpu, cpu: &mut Vcpu, command: u64, arg: u64) -> Result<(), Errno> {
    match command {
        6 => {
            let iopl = Fields::<4>::read(cpu, arg)?.u32(0);
            if iopl > 3 {
                return Err(Errno::Inval);
            }
            pv.iopl = iopl as u8;
            Ok(())
        }
        7 => {
            let fields = Fields::<16>::read(cpu, arg)?;
            if fields.u32(8) > 0x1_0000 {
                return Err(Errno::Inval);
            }
            pv.io_bitmap = (fields.u64(0), fields.u32(8));
            Ok(())
        }
        _ => Err(Errno::NoSys),
    }
}

/// console_io(command, count, buffer): the emergency console, to which a kernel writes before it has another.
pub(super) fn console_io(
    pv: &mut PvCpu,
    cpu: &mut Vcpu,
    command: u64,
    count: u64,
    buffer: u64,
) -> Result<u64, Errno> {
    match command {
        0 => {
            let mut bytes = vec![0; count.min(MOST_CONSOLE) as usize];
            cpu.copy_in(buffer, &mut bytes).map_err(|_| Errno::Fault)?;
            pv.domain.host.emergency_output(&bytes);
            Ok(0)
        }
        1 => Ok(0),
        _ => Err(Errno::NoSys),
    }
}

impl PvCpu {
    /// set_debugreg(number, value), and MOV to a debug register.
    pub(crate) fn set_debugreg(&mut self, cpu: &mut Vcpu, number: u64, value: u64) -> Result<(), Errno> {
        match self.debug_number(cpu, number)? {
            n @ 0..=3 => {
                if !canonical(value) {
                    return Err(Errno::Inval);
                }
                if (HYPERVISOR_START..HYPERVISOR_END).contains(&value) {
                    return Err(Errno::Perm);
                }
                cpu.dr[n] = value;
            }
            6 => cpu.dr6 = value & dr6::WRITABLE | dr6::RESET,
            _ => {
                if value & dr7::GD != 0 {
                    return Err(Errno::Perm);
                }
                if value >> 32 != 0 {
                    return Err(Errno::Inval);
                }
                cpu.dr7 = value & dr7::WRITABLE | dr7::RESET;
            }
        }
        cpu.debug_registers_changed();
        Ok(())
    }

    /// get_debugreg(number).
    pub(crate) fn get_debugreg(&mut self, cpu: &mut Vcpu, number: u64) -> Result<u64, Errno> {
        Ok(match self.debug_number(cpu, number)? {
            n @ 0..=3 => cpu.dr[n],
            6 => cpu.dr6,
            _ => cpu.dr7,
        })
    }

    /// 4 and 5 stand for 6 and 7 unless CR4.DE says that they do not.
    fn debug_number(&self, cpu: &Vcpu, number: u64) -> Result<usize, Errno> {
        match number {
            0..=3 | 6 | 7 => Ok(number as usize),
            4 | 5 if cpu.cr4 & cr4::DE == 0 => Ok(number as usize + 2),
            4 | 5 => Err(Errno::NoDev),
            _ => Err(Errno::Inval),
        }
    }
}
