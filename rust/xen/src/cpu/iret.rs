//! The iret hypercall: the only way from the kernel back to what it interrupted, and to user mode.

use trapgate_engine::exit::Exit;
use trapgate_engine::fault::Exception;
use trapgate_engine::mmu::access::canonical;
use trapgate_engine::state::Vcpu;
use trapgate_x86::exception::Vector;
use trapgate_x86::insn::Seg;
use trapgate_x86::regs::rflags;

use super::PvCpu;
use super::bounce::is_compat;
use crate::public::{FLAT_CS32, FLAT_CS64, FLAT_SS};

/// `VGCF_in_syscall`: return as SYSRET does.
const IN_SYSCALL: u64 = 0x100;
/// Flags that the frame decides about.
const FROM_FRAME: u64 =
    rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;

impl PvCpu {
    /// HYPERVISOR_iret: the frame at RSP is rax, r11, rcx, flags, rip, cs, rflags, rsp, ss (xen/include/public/arch-x86/xen-x86_64.h).
    pub(crate) fn iret(&mut self, cpu: &mut Vcpu) -> Result<(), Exit> {
        let mut frame = [0u64; 9];
        let at = cpu.regs[4];
        for (word, i) in frame.iter_mut().zip(0u64..) {
            match cpu.load_u64(at.wrapping_add(i * 8)) {
                Ok(value) => *word = value,
                Err(error) => {
                    return Err(self.crash(cpu, format_args!("the frame of an iret cannot be read: {error}")));
                }
            }
        }
        let [rax, r11, rcx, how, rip, cs, flags, rsp, ss] = frame;
        let (mut cs, mut ss) = (cs as u16, ss as u16);
        if cs & 3 == 3 {
            if self.user_root == 0 {
                return Err(self.crash(cpu, format_args!("iret to user mode without page tables for it")));
            }
            self.toggle(cpu);
        }
        cs |= 3;
        ss |= 3;
        if how & IN_SYSCALL != 0 {
            (cpu.regs[1], cpu.regs[11]) = (rip, flags);
            cs = if is_compat(cs) { FLAT_CS32 } else { FLAT_CS64 };
            ss = FLAT_SS;
        } else {
            (cpu.regs[1], cpu.regs[11]) = (rcx, r11);
        }
        cpu.regs[0] = rax;
        cpu.regs[4] = rsp;
        self.set_upcall_mask(flags & rflags::IF == 0);
        // Any return ends the handling of an NMI, whether it leads out of its handler or not.
        self.nmi_blocked = false;
        let kept = cpu.rflags() & !(FROM_FRAME | rflags::IOPL | rflags::VM);
        cpu.return_rflags(kept | flags & FROM_FRAME | rflags::IF | rflags::FIXED);
        if let Some(fault) = self.return_to(cpu, cs, ss, rip) {
            self.bounce_exception(cpu, &fault, rip)?;
        }
        self.deliver_pending(cpu)
    }

    /// Loads CS and SS of a return. What is wrong with them is an exception of the context that is returned to.
    fn return_to(&mut self, cpu: &mut Vcpu, cs: u16, ss: u16, rip: u64) -> Option<Exception> {
        if !canonical(rip) {
            cpu.rip = rip;
            return Some(Exception::gp(0));
        }
        if cs == FLAT_CS64 && ss == FLAT_SS {
            cpu.enter_flat(cs, ss, rip);
            return None;
        }
        if let Some((code, stack)) = self.known_return
            && code.selector == cs
            && stack.selector == ss
        {
            cpu.enter_segments(code, stack, rip);
            return None;
        }
        self.return_by_tables(cpu, cs, ss, rip)
    }

    fn return_by_tables(&mut self, cpu: &mut Vcpu, cs: u16, ss: u16, rip: u64) -> Option<Exception> {
        let named = |vector, selector: u16| Exception::with_error(vector, u32::from(selector & !3));
        cpu.rip = rip;
        let code = match cpu.read_descriptor(cs) {
            Some(code) if code.is_code() && code.dpl() == 3 => code,
            _ => return Some(named(Vector::Gp, cs)),
        };
        if !code.present() {
            return Some(named(Vector::Np, cs));
        }
        if ss & !3 == 0 || !cpu.try_load_segment(Seg::Ss, ss) {
            return Some(named(Vector::Gp, ss));
        }
        let (code, stack) = (code.segment(cs), *cpu.segment(Seg::Ss));
        const LDT: u16 = 4;
        if (cs | ss) & LDT == 0 {
            // Only calls change a GDT, and they forget this.
            self.known_return = Some((code, stack));
        }
        cpu.enter_segments(code, stack, rip);
        None
    }
}
