//! Hypercalls: SYSCALL executed by the guest's kernel, with the number in RAX and arguments in RDI, RSI, RDX, R10 and R8.
//!
//! [`table`] says what becomes of each number; a file each has the calls of one kind. A call preserves every register but
//! RAX. One that has more to do than is good at once puts what is left into its arguments and is made again.

mod control;
mod event;
mod grant;
mod guest;
mod memory;
mod mmu;
mod multicall;
pub mod page;
mod sched;
pub mod table;
pub mod vcpu;
pub mod version;

use trapgate_engine::exit::Exit;
use trapgate_engine::state::Vcpu;

use crate::cpu::PvCpu;
use crate::domain::work;
use crate::errno::Errno;
pub use table::{Disposition, Name, Row, Table};

/// Length of SYSCALL.
const SYSCALL_LENGTH: u64 = 2;
/// Parts of a call that are made at one time for a handler outside.
const MOST_ROUNDS: u32 = 1024;

/// The arguments of a call, as in the registers.
pub type Args = [u64; 5];

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// With this in RAX.
    Value(u64),
    /// It has set the registers itself (iret).
    Registers,
    /// It is to be made again with these arguments.
    Again(Args),
    /// Its handler is outside; the result comes later.
    Outside,
}

impl From<Result<(), Errno>> for Done {
    fn from(result: Result<(), Errno>) -> Done {
        Done::Value(result.map_or_else(Errno::code, |()| 0))
    }
}

impl From<Result<u64, Errno>> for Done {
    fn from(result: Result<u64, Errno>) -> Done {
        Done::Value(result.unwrap_or_else(Errno::code))
    }
}

/// A call whose handler is outside the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub number: u32,
    pub args: Args,
    /// Where the result goes: `None` is RAX, else the guest address of the multicall entry's result.
    pub result_at: Option<u64>,
}

/// The kernel has executed SYSCALL.
pub(crate) fn enter(pv: &mut PvCpu, cpu: &mut Vcpu) -> Result<(), Exit> {
    let number = cpu.regs[0];
    let args = [cpu.regs[7], cpu.regs[6], cpu.regs[2], cpu.regs[10], cpu.regs[8]];
    match run(pv, cpu, number, args)? {
        Done::Value(value) => cpu.regs[0] = value,
        Done::Registers => return Ok(()),
        Done::Again(args) => {
            [cpu.regs[7], cpu.regs[6], cpu.regs[2], cpu.regs[10], cpu.regs[8]] = args;
            cpu.rip = cpu.rip.wrapping_sub(SYSCALL_LENGTH);
        }
        Done::Outside => {
            let waiting = Waiting { number: number as u32, args, result_at: None };
            pv.domain.hypercalls.wait(waiting);
            pv.domain.ask(work::HYPERCALL);
            // Events are delivered with the result.
            return Ok(());
        }
    }
    pv.deliver_pending(cpu)
}

/// Makes one call.
fn run(pv: &mut PvCpu, cpu: &mut Vcpu, number: u64, args: Args) -> Result<Done, Exit> {
    let Some(row) = pv.domain.hypercalls.row(number) else { return Ok(Done::Value(Errno::NoSys.code())) };
    let (name, disposition, timer) = (row.name, row.disposition(), row.begin());
    let done = match disposition {
        Disposition::Native => native(pv, cpu, name, args)?,
        Disposition::Outside => Done::Outside,
        Disposition::Errno(code) => Done::Value((-i64::from(code)) as u64),
    };
    if timer.is_some() {
        pv.domain.hypercalls.row(number).into_iter().for_each(|row| row.end(timer));
    }
    Ok(done)
}

/// The handlers that are ours.
fn native(pv: &mut PvCpu, cpu: &mut Vcpu, name: Name, args: Args) -> Result<Done, Exit> {
    let [first, second, third, ..] = args;
    Ok(match name {
        Name::SetTrapTable => control::set_trap_table(pv, cpu, first).into(),
        Name::MmuUpdate => mmu::mmu_update(pv, cpu, args),
        Name::SetGdt => control::set_gdt(pv, cpu, first, second).into(),
        Name::StackSwitch => {
            pv.kernel_sp = second;
            Done::Value(0)
        }
        Name::SetCallbacks => control::set_callbacks(pv, first, second, third).into(),
        Name::FpuTaskswitch => control::fpu_taskswitch(cpu, first != 0),
        Name::SetDebugreg => pv.set_debugreg(cpu, first, second).into(),
        Name::GetDebugreg => pv.get_debugreg(cpu, first).into(),
        Name::UpdateDescriptor => mmu::update_descriptor(pv, first, second).into(),
        Name::MemoryOp => memory::memory_op(pv, cpu, first, second),
        Name::Multicall => return multicall::multicall(pv, cpu, args),
        Name::UpdateVaMapping => mmu::update_va_mapping(pv, cpu, first, second, third).into(),
        Name::SetTimerOp => vcpu::set_timer(pv, cpu, first),
        Name::XenVersion => version::xen_version(pv, cpu, first, second).into(),
        Name::ConsoleIo => control::console_io(pv, cpu, first, second, third).into(),
        Name::GrantTableOp => grant::grant_table_op(pv, cpu, first, second, third).into(),
        Name::VmAssist => control::vm_assist(pv, first, second).into(),
        Name::Iret => {
            pv.iret(cpu)?;
            Done::Registers
        }
        Name::VcpuOp => vcpu::vcpu_op(pv, cpu, first, second, third).into(),
        Name::SetSegmentBase => pv.set_segment_base(cpu, first, second).into(),
        Name::MmuextOp => mmu::mmuext_op(pv, cpu, args),
        Name::NmiOp => control::nmi_op(pv, first, second).into(),
        Name::SchedOp => return sched::sched_op(pv, cpu, first, second),
        Name::CallbackOp => control::callback_op(pv, cpu, first, second).into(),
        Name::EventChannelOp => event::event_channel_op(pv, cpu, first, second).into(),
        Name::PhysdevOp => control::physdev_op(pv, cpu, first, second).into(),
        // Each other number has an error of its own in the table, and none of them is native.
        _ => Done::Value(Errno::NoSys.code()),
    })
}

/// Makes a call by the handler of ours, to its end, whatever its row says; `None`: it has set the registers (iret).
pub(crate) fn make(pv: &mut PvCpu, cpu: &mut Vcpu, number: u32, args: Args) -> Result<Option<u64>, Exit> {
    let Some(row) = pv.domain.hypercalls.row(u64::from(number)) else {
        return Ok(Some(Errno::NoSys.code()));
    };
    let name = row.name;
    let mut args = args;
    // Each round does a part of what is left; a guest that asks for more than these has asked for too much.
    for _ in 0..MOST_ROUNDS {
        match native(pv, cpu, name, args)? {
            Done::Value(value) => return Ok(Some(value)),
            Done::Registers => return Ok(None),
            Done::Again(left) => args = left,
            // A part of a multicall that is handled outside cannot be waited for here.
            Done::Outside => return Ok(Some(Errno::Again.code())),
        }
    }
    Ok(Some(Errno::TooBig.code()))
}

/// Puts the result of a call whose handler was outside where it belongs, and delivers what waited for it. An error is a place
/// in guest memory that is gone.
pub fn finish(cpu: &mut Vcpu, waiting: &Waiting, value: u64) -> Result<(), Errno> {
    match waiting.result_at {
        None => cpu.regs[0] = value,
        Some(at) => cpu.store_u64(at, value).map_err(|_| Errno::Fault)?,
    }
    cpu.expect_interrupt();
    Ok(())
}
