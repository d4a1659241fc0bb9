//! Names for what host code names by numbers, where units are explained: places of the context and of the thunks.

use std::mem::offset_of;

use trapgate_x86::insn::{Insn, Operand};

use super::asm::RSP;
use super::context::{BELOW, Context, DELTA, MINUS_READ, MINUS_WRITE, jumps_offset, slot, tlb_offset};
use super::explain::THUNKS;

/// The name of a general register.
pub fn register(n: u8) -> String {
    const LEGACY: [&str; 8] = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    LEGACY.get(usize::from(n)).map_or_else(|| format!("r{n}"), |name| (*name).to_owned())
}

/// Puts names for places of the context and for thunks into the text of a host instruction.
pub fn named(text: String, insn: &Insn, next: u64) -> String {
    if insn.operands[0] == Operand::Rel {
        let thunk = match next.wrapping_add(insn.imm) {
            to if to == THUNKS.exit => "leave",
            to if to == THUNKS.miss => "miss",
            to if to == THUNKS.stack || to == THUNKS.user_stack => "stack",
            to if to == THUNKS.lend => "lend",
            to if to == THUNKS.lend_upper => "lend_upper",
            to if to == THUNKS.lend_x87 => "lend_x87",
            to if to == THUNKS.clock => "clock",
            _ => return text,
        };
        return format!("{} {thunk}", insn.op.name());
    }
    if insn.mem.base != RSP {
        return text;
    }
    let (Some(open), Some(close)) = (text.find('['), text.find(']')) else { return text };
    let indexed = insn.mem.index < 16;
    let Some(name) = place_name(insn.mem.disp as i32, indexed) else { return text };
    let index = if indexed {
        let scale = 1 << insn.mem.scale;
        format!("+{}*{scale}", register(insn.mem.index))
    } else {
        String::new()
    };
    format!("{}[{name}{index}]{}", &text[..open], &text[close + 1..])
}

/// What lies at a displacement from RSP.
fn place_name(disp: i32, indexed: bool) -> Option<String> {
    if indexed {
        let tables = [false, true].into_iter().flat_map(|user| {
            let tlb = tlb_offset(user);
            [
                (tlb + MINUS_READ, "tlb_read"),
                (tlb + MINUS_WRITE, "tlb_write"),
                (tlb + DELTA, "tlb_delta"),
                (jumps_offset(user), "jumps"),
            ]
        });
        return tables.into_iter().find(|(at, _)| *at == disp).map(|(_, name)| name.to_owned());
    }
    if let Some(n) = (0..4).find(|n| slot(*n).disp == disp) {
        return Some(format!("guest_r{}", 8 + n));
    }
    let offset = usize::try_from(disp - BELOW).ok()?;
    if let Some(name) = super::fpu::place_name(offset) {
        return Some(name.to_owned());
    }
    macro_rules! places {
        ($($name:ident)*) => { [$((offset_of!(Context, $name), size_of_field(|c: &Context| &c.$name), stringify!($name))),*] };
    }
    let places = places!(
        budget minus_stack stack_delta vector fs_base gs_base exit aligned_mask wide_mask slot_mask interrupts
        quiet other_flags arithmetic_mask kernel_gs_base direction control selectors lent upper lent_upper zero_upper target gpr
        system_calls call_target call_mask call_selectors loaded called returned base_access open_clock granted source_delta other_minus other_delta former_minus former_delta flags groups
        iterations trips first_trips patience mxcsr host_mxcsr xmm upper_halves pairs
    );
    let (start, size, name) =
        *places.iter().find(|(start, size, _)| (*start..start + size).contains(&offset))?;
    let inside = offset - start;
    Some(if size > 8 {
        format!("{name}+{inside:#x}")
    } else if inside > 0 {
        format!("{name}+{inside}")
    } else {
        name.to_owned()
    })
}

/// The size of a field, by a function that is never called.
const fn size_of_field<T>(_: fn(&Context) -> &T) -> usize {
    size_of::<T>()
}
