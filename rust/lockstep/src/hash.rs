//! The state hash of a run every so many instructions, in virtual time: two runs, or two builds, that went the same way
//! give the same lines, and the first line that differs says where to look.

use std::fmt;

use trapgate_machine::{Exit, Limits, Machine};

/// The state at one point of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    pub count: u64,
    pub rip: u64,
    pub digest: [u8; 32],
    /// Set when the machine went no further.
    pub exit: Option<Exit>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>12} {:016x} ", self.count, self.rip)?;
        for byte in &self.digest[..16] {
            write!(f, "{byte:02x}")?;
        }
        if let Some(exit) = self.exit {
            write!(f, " {exit:x?}")?;
        }
        Ok(())
    }
}

/// Runs until `end`, or the machine's own end, and gives a line to `each` at every multiple of `every`.
pub fn run(machine: &mut Machine, every: u64, end: u64, mut each: impl FnMut(Line)) {
    while machine.count() < end {
        let next = (machine.count() / every.max(1) + 1).saturating_mul(every.max(1)).min(end);
        let exit = machine.run(&Limits { count: Some(next), ..Limits::default() });
        let exit = (exit != Exit::CountReached).then_some(exit);
        each(Line { count: machine.count(), rip: machine.cpu().rip, digest: machine.digest(), exit });
        if exit.is_some() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::Guest;
    use iced_x86::code_asm::*;
    use trapgate_x86::insn::Bits;

    fn lines(start: u32) -> Vec<Line> {
        let guest = Guest::program(Bits::B64, |a| {
            let mut again = a.create_label();
            a.mov(ecx, start)?;
            a.mov(ebx, 0x20_0000)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(rbx), ecx)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        let mut lines = Vec::new();
        run(&mut guest.unwrap().machine().unwrap(), 10, 100, |line| lines.push(line));
        lines
    }

    #[test]
    fn equal_runs_give_equal_lines_and_others_do_not() {
        let first = lines(12);
        assert_eq!(first, lines(12));
        assert_eq!(first.iter().map(|line| line.count).collect::<Vec<_>>(), [10, 20, 30, 39]);
        assert_eq!(first[3].exit, Some(Exit::Halted));
        let other = lines(13);
        assert!(first.iter().zip(&other).all(|(one, other)| one.digest != other.digest));
    }
}
