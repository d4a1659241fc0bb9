//! Which handler does which instruction, and which instructions end a block.

use trapgate_x86::insn::{Insn, Operand, Prefixes, Seg};
use trapgate_x86::op::Op;

use super::{
    Handler, alu, bits, by_width, control, data, descriptor, far, io, muldiv, shift, stack, string, syscall,
    system, vector,
};

/// `handler::<T>` by the operand size.
macro_rules! sized {
    ($insn:expr, $($path:tt)*) => { by_width!($insn.opsize, T => sized!(@ T, $($path)*)) };
    (@ $t:ident, $module:ident :: $name:ident $(, $arg:expr)*) => { $module::$name::<$t $(, $arg)*> };
}

/// The handler of an instruction.
pub(crate) fn handler(insn: &Insn) -> Handler {
    integer(insn).or_else(|| flow(insn)).or_else(|| system_op(insn)).unwrap_or_else(|| vector_op(insn.op))
}

fn vector_op(op: Op) -> Handler {
    if crate::vector::is_gather(op) {
        vector::gather
    } else if crate::vector::is_vector(op) {
        vector::execute
    } else {
        alu::never
    }
}

fn integer(i: &Insn) -> Option<Handler> {
    let memory_first = matches!(i.operands[0], Operand::Mem { .. });
    Some(match i.op {
        Op::Add => alu::binary::<alu::Add>(i),
        Op::Or => alu::binary::<alu::Or>(i),
        Op::Adc => alu::binary::<alu::Adc>(i),
        Op::Sbb => alu::binary::<alu::Sbb>(i),
        Op::And => alu::binary::<alu::And>(i),
        Op::Sub => alu::binary::<alu::Sub>(i),
        Op::Xor => alu::binary::<alu::Xor>(i),
        Op::Cmp => alu::binary::<alu::Cmp>(i),
        Op::Test => alu::binary::<alu::Test>(i),
        Op::Inc => alu::unary::<alu::Inc>(i),
        Op::Dec => alu::unary::<alu::Dec>(i),
        Op::Neg => alu::unary::<alu::Neg>(i),
        Op::Not => alu::unary::<alu::Not>(i),
        Op::Xadd => sized!(i, alu::xadd),
        Op::Cmpxchg => sized!(i, alu::cmpxchg),
        Op::Cmpxchg8b | Op::Cmpxchg16b => alu::cmpxchg_pair,
        Op::Rol => shift::shift::<shift::Rol>(i),
        Op::Ror => shift::shift::<shift::Ror>(i),
        Op::Rcl => shift::shift::<shift::Rcl>(i),
        Op::Rcr => shift::shift::<shift::Rcr>(i),
        Op::Shl => shift::shift::<shift::Shl>(i),
        Op::Shr => shift::shift::<shift::Shr>(i),
        Op::Sar => shift::shift::<shift::Sar>(i),
        Op::Shld => by_width!(i.opsize, T => shift::shift_double::<T, true>),
        Op::Shrd => by_width!(i.opsize, T => shift::shift_double::<T, false>),
        Op::Mul => sized!(i, muldiv::mul),
        Op::Imul if i.operands[1] == Operand::None => sized!(i, muldiv::imul1),
        Op::Imul => sized!(i, muldiv::imul),
        Op::Div => sized!(i, muldiv::div),
        Op::Idiv => sized!(i, muldiv::idiv),
        Op::Aaa => muldiv::aaa::<true>,
        Op::Aas => muldiv::aaa::<false>,
        Op::Daa => muldiv::daa::<true>,
        Op::Das => muldiv::daa::<false>,
        Op::Aam => muldiv::aam,
        Op::Aad => muldiv::aad,
        Op::Bt => by_width!(i.opsize, T => bits::bit_test::<T, bits::Keep>),
        Op::Bts => by_width!(i.opsize, T => bits::bit_test::<T, bits::Set>),
        Op::Btr => by_width!(i.opsize, T => bits::bit_test::<T, bits::Reset>),
        Op::Btc => by_width!(i.opsize, T => bits::bit_test::<T, bits::Complement>),
        Op::Bsf => sized!(i, bits::bsf),
        Op::Bsr => sized!(i, bits::bsr),
        Op::Popcnt => sized!(i, bits::popcnt),
        Op::Tzcnt => sized!(i, bits::tzcnt),
        Op::Lzcnt => sized!(i, bits::lzcnt),
        Op::Bswap => sized!(i, bits::bswap),
        Op::Movbe => sized!(i, bits::movbe),
        Op::Andn => sized!(i, bits::andn),
        Op::Blsr => by_width!(i.opsize, T => bits::lowest_bit::<T, bits::Blsr>),
        Op::Blsmsk => by_width!(i.opsize, T => bits::lowest_bit::<T, bits::Blsmsk>),
        Op::Blsi => by_width!(i.opsize, T => bits::lowest_bit::<T, bits::Blsi>),
        Op::Bzhi => sized!(i, bits::bzhi),
        Op::Bextr => sized!(i, bits::bextr),
        Op::Pdep => sized!(i, bits::pdep),
        Op::Pext => sized!(i, bits::pext),
        Op::Mulx => sized!(i, bits::mulx),
        Op::Shlx => by_width!(i.opsize, T => bits::shift::<T, bits::Left>),
        Op::Shrx => by_width!(i.opsize, T => bits::shift::<T, bits::Right>),
        Op::Sarx => by_width!(i.opsize, T => bits::shift::<T, bits::Arithmetic>),
        Op::Rorx => by_width!(i.opsize, T => bits::shift::<T, bits::Rotate>),
        Op::Mov if matches!(i.operands[0], Operand::Seg(_)) => data::mov_to_seg,
        Op::Mov if matches!(i.operands[1], Operand::Seg(_)) => data::mov_from_seg,
        Op::Mov => data::mov(i),
        Op::Movnti => data::mov(i),
        Op::Movzx => data::extend::<false>(i),
        Op::Movsx | Op::Movsxd => data::extend::<true>(i),
        Op::Lea => sized!(i, data::lea),
        Op::Xchg => sized!(i, data::xchg),
        Op::Cmovcc => sized!(i, data::cmov),
        Op::Setcc => data::setcc,
        Op::Xlat => data::xlat,
        Op::Cbw => data::cbw,
        Op::Cwd => data::cwd,
        Op::Lahf => data::lahf,
        Op::Sahf => data::sahf,
        Op::Salc => data::salc,
        Op::Nop
        | Op::Pause
        | Op::Prefetch
        | Op::Lfence
        | Op::Mfence
        | Op::Sfence
        | Op::Endbr32
        | Op::Endbr64 => data::nop,
        Op::Push if matches!(i.operands[0], Operand::Gpr { .. }) => sized!(i, stack::push_reg),
        Op::Push => sized!(i, stack::push),
        Op::Pop if memory_first || matches!(i.operands[0], Operand::Seg(_)) => sized!(i, stack::pop),
        Op::Pop => sized!(i, stack::pop_reg),
        Op::Pusha => sized!(i, stack::pusha),
        Op::Popa => sized!(i, stack::popa),
        Op::Pushf => sized!(i, stack::pushf),
        Op::Popf => sized!(i, stack::popf),
        Op::Enter => sized!(i, stack::enter),
        Op::Leave => sized!(i, stack::leave),
        Op::Movs | Op::Stos | Op::Lods | Op::Cmps | Op::Scas | Op::Ins | Op::Outs => string::string(i),
        Op::Clc => control::clc,
        Op::Stc => control::stc,
        Op::Cmc => control::cmc,
        Op::Cld => control::cld,
        Op::Std => control::std,
        _ => return None,
    })
}

fn flow(i: &Insn) -> Option<Handler> {
    let relative = matches!(i.operands[0], Operand::Rel);
    Some(match i.op {
        Op::Jmp if relative => control::jmp_rel,
        Op::Jmp => sized!(i, control::jmp_indirect),
        Op::Jcc => control::jcc,
        Op::Call if relative => sized!(i, control::call_rel),
        Op::Call => sized!(i, control::call_indirect),
        Op::Ret => sized!(i, control::ret),
        Op::Loop | Op::Loope | Op::Loopne => control::loop_while,
        Op::Jrcxz => control::jrcxz,
        Op::JmpFar => sized!(i, far::jmp_far),
        Op::CallFar => sized!(i, far::call_far),
        Op::RetFar => sized!(i, far::ret_far),
        Op::Iret => far::iret,
        Op::Int => control::int,
        Op::Int3 => control::int3,
        Op::Int1 => control::int1,
        Op::Into => control::into,
        Op::Bound => sized!(i, control::bound),
        Op::Syscall => syscall::syscall,
        Op::Sysret => syscall::sysret,
        Op::Sysenter => syscall::sysenter,
        Op::Sysexit => syscall::sysexit,
        _ => return None,
    })
}

fn system_op(i: &Insn) -> Option<Handler> {
    const FS: u8 = Seg::Fs as u8;
    const GS: u8 = Seg::Gs as u8;
    const SS: u8 = Seg::Ss as u8;
    const DS: u8 = Seg::Ds as u8;
    const ES: u8 = Seg::Es as u8;
    Some(match i.op {
        Op::Hlt => control::hlt,
        Op::Cli => control::cli,
        Op::Sti => control::sti,
        Op::In => io::input,
        Op::Out => io::output,
        Op::MovCr => system::mov_cr,
        Op::MovDr => system::mov_dr,
        Op::Clts => system::clts,
        Op::Lmsw => system::lmsw,
        Op::Smsw => system::smsw,
        Op::Invlpg => system::invlpg,
        Op::Invpcid => system::invpcid,
        Op::Invd | Op::Wbinvd | Op::Wbnoinvd => system::cache_control,
        Op::Clflush | Op::Clflushopt | Op::Clwb => system::cache_line,
        Op::Cpuid => system::cpuid,
        Op::Rdtsc => system::rdtsc,
        Op::Rdtscp => system::rdtscp,
        Op::Rdpid => system::rdpid,
        Op::Rdpmc => system::rdpmc,
        Op::Rdrand | Op::Rdseed => sized!(i, system::random),
        Op::Rdmsr => system::rdmsr,
        Op::Wrmsr => system::wrmsr,
        Op::Monitor => system::monitor,
        Op::Mwait => system::mwait,
        Op::Xsetbv => system::xsetbv,
        Op::Swapgs => syscall::swapgs,
        Op::Lgdt => descriptor::load_table::<false>,
        Op::Lidt => descriptor::load_table::<true>,
        Op::Sgdt => descriptor::store_table::<false>,
        Op::Sidt => descriptor::store_table::<true>,
        Op::Lldt => descriptor::lldt,
        Op::Ltr => descriptor::ltr,
        Op::Sldt => descriptor::store_selector::<false>,
        Op::Str => descriptor::store_selector::<true>,
        Op::Lar => sized!(i, descriptor::lar),
        Op::Lsl => sized!(i, descriptor::lsl),
        Op::Verr => descriptor::verify::<false>,
        Op::Verw => descriptor::verify::<true>,
        Op::Arpl => descriptor::arpl,
        Op::Lds => by_width!(i.opsize, T => descriptor::load_far::<T, DS>),
        Op::Les => by_width!(i.opsize, T => descriptor::load_far::<T, ES>),
        Op::Lfs => by_width!(i.opsize, T => descriptor::load_far::<T, FS>),
        Op::Lgs => by_width!(i.opsize, T => descriptor::load_far::<T, GS>),
        Op::Lss => by_width!(i.opsize, T => descriptor::load_far::<T, SS>),
        // 66 makes no 16-bit form of these.
        Op::Rdfsbase => by_width!(i.opsize.max(4), T => descriptor::segment_base::<T, false, false>),
        Op::Rdgsbase => by_width!(i.opsize.max(4), T => descriptor::segment_base::<T, true, false>),
        Op::Wrfsbase => by_width!(i.opsize.max(4), T => descriptor::segment_base::<T, false, true>),
        Op::Wrgsbase => by_width!(i.opsize.max(4), T => descriptor::segment_base::<T, true, true>),
        Op::Clac => descriptor::set_ac::<false>,
        Op::Stac => descriptor::set_ac::<true>,
        Op::Rsm | Op::Ud0 | Op::Ud1 | Op::Ud2 => system::undefined,
        _ => return None,
    })
}

/// Whether the block ends with this instruction: it moves RIP, or what follows must be looked up or counted anew.
pub(super) fn ends_block(i: &Insn) -> bool {
    if i.prefixes.intersects(Prefixes::REP | Prefixes::REPNE)
        && matches!(i.op, Op::Movs | Op::Stos | Op::Lods | Op::Cmps | Op::Scas | Op::Ins | Op::Outs)
    {
        return true;
    }
    if flow(i).is_some() {
        return true;
    }
    match i.op {
        Op::Hlt | Op::Sti | Op::In | Op::Out | Op::Ins | Op::Outs | Op::Popf | Op::Mwait => true,
        Op::MovCr | Op::MovDr | Op::Lmsw | Op::Invlpg | Op::Invpcid | Op::Wrmsr | Op::Xsetbv | Op::Rsm => {
            true
        }
        Op::Ud0 | Op::Ud1 | Op::Ud2 => true,
        Op::Clac | Op::Stac | Op::Cpuid | Op::Clts => true,
        Op::Lds | Op::Les | Op::Lfs | Op::Lgs | Op::Lss => true,
        Op::Mov => matches!(i.operands[0], Operand::Seg(_)),
        Op::Pop => matches!(i.operands[0], Operand::Seg(_)),
        _ => false,
    }
}
