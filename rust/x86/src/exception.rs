//! Exception vectors (Intel SDM vol. 3, table 6-1): numbers, names, and which push an error code.

/// An exception of the processor; the value is its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Vector {
    /// #DE, divide error.
    De = 0,
    /// #DB, debug.
    Db = 1,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// #BP, breakpoint (INT3).
    Bp = 3,
    /// #OF, overflow (INTO).
    Of = 4,
    /// #BR, BOUND range exceeded.
    Br = 5,
    /// #UD, invalid opcode.
    Ud = 6,
    /// #NM, device not available.
    Nm = 7,
    /// #DF, double fault.
    Df = 8,
    /// #TS, invalid TSS.
    Ts = 10,
    /// #NP, segment not present.
    Np = 11,
    /// #SS, stack-segment fault.
    Ss = 12,
    /// #GP, general protection.
    Gp = 13,
    /// #PF, page fault.
    Pf = 14,
    /// #MF, x87 floating-point error.
    Mf = 16,
    /// #AC, alignment check.
    Ac = 17,
    /// #MC, machine check.
    Mc = 18,
    /// #XM, SIMD floating-point exception.
    Xm = 19,
    /// #VE, virtualization exception.
    Ve = 20,
    /// #CP, control protection.
    Cp = 21,
}

/// How two exceptions in a row combine (SDM vol. 3, tables 6-4 and 6-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Benign,
    Contributory,
    PageFault,
}

impl Vector {
    pub const ALL: [Vector; 20] = [
        Vector::De,
        Vector::Db,
        Vector::Nmi,
        Vector::Bp,
        Vector::Of,
        Vector::Br,
        Vector::Ud,
        Vector::Nm,
        Vector::Df,
        Vector::Ts,
        Vector::Np,
        Vector::Ss,
        Vector::Gp,
        Vector::Pf,
        Vector::Mf,
        Vector::Ac,
        Vector::Mc,
        Vector::Xm,
        Vector::Ve,
        Vector::Cp,
    ];

    /// The exception with this vector number.
    pub fn from_number(number: u8) -> Option<Vector> {
        Vector::ALL.into_iter().find(|&vector| vector as u8 == number)
    }

    /// Whether delivery outside real mode pushes an error code.
    pub const fn has_error_code(self) -> bool {
        use Vector::*;
        matches!(self, Df | Ts | Np | Ss | Gp | Pf | Ac | Cp)
    }

    /// The class that decides between serial delivery and a double fault.
    pub const fn severity(self) -> Severity {
        match self {
            Vector::De | Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp | Vector::Cp => {
                Severity::Contributory
            }
            Vector::Pf | Vector::Ve => Severity::PageFault,
            _ => Severity::Benign,
        }
    }

    /// The manual's mnemonic.
    pub const fn name(self) -> &'static str {
        match self {
            Vector::De => "#DE",
            Vector::Db => "#DB",
            Vector::Nmi => "NMI",
            Vector::Bp => "#BP",
            Vector::Of => "#OF",
            Vector::Br => "#BR",
            Vector::Ud => "#UD",
            Vector::Nm => "#NM",
            Vector::Df => "#DF",
            Vector::Ts => "#TS",
            Vector::Np => "#NP",
            Vector::Ss => "#SS",
            Vector::Gp => "#GP",
            Vector::Pf => "#PF",
            Vector::Mf => "#MF",
            Vector::Ac => "#AC",
            Vector::Mc => "#MC",
            Vector::Xm => "#XM",
            Vector::Ve => "#VE",
            Vector::Cp => "#CP",
        }
    }
}

impl std::fmt::Display for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_those_of_the_manual() {
        let with: Vec<u8> =
            (0..32).filter(|&n| Vector::from_number(n).is_some_and(Vector::has_error_code)).collect();
        assert_eq!(with, [8, 10, 11, 12, 13, 14, 17, 21]);
    }

    #[test]
    fn vectors_9_and_15_are_not_raised() {
        assert_eq!(Vector::from_number(9), None);
        assert_eq!(Vector::from_number(15), None);
        assert_eq!(Vector::from_number(21).map(Vector::name), Some("#CP"));
    }
}
