//! Error numbers of hypercalls: Linux's, as Xen's public header `errno.h` lists them.

/// Why a hypercall failed; the guest gets its negative in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(i64)]
pub enum Errno {
    #[error("EPERM: not permitted")]
    Perm = 1,
    #[error("ENOENT: no such entry")]
    NoEnt = 2,
    #[error("ESRCH: no such domain")]
    Srch = 3,
    #[error("E2BIG: argument list too long")]
    TooBig = 7,
    #[error("EAGAIN: try again")]
    Again = 11,
    #[error("ENOMEM: out of memory")]
    NoMem = 12,
    #[error("EACCES: permission denied")]
    Access = 13,
    #[error("EFAULT: bad address")]
    Fault = 14,
    #[error("EBUSY: busy")]
    Busy = 16,
    #[error("EEXIST: exists already")]
    Exist = 17,
    #[error("ENXIO: no such address")]
    Nxio = 6,
    #[error("ENODEV: no such device")]
    NoDev = 19,
    #[error("EINVAL: invalid argument")]
    Inval = 22,
    #[error("ENOSPC: no space left")]
    NoSpc = 28,
    #[error("ERANGE: out of range")]
    Range = 34,
    #[error("ENOSYS: not implemented")]
    NoSys = 38,
    #[error("ENODATA: no data")]
    NoData = 61,
    #[error("ETIME: timer expired")]
    Time = 62,
    #[error("EOPNOTSUPP: not supported")]
    NotSupp = 95,
}

impl Errno {
    /// What the guest finds in RAX.
    pub fn code(self) -> u64 {
        (-(self as i64)) as u64
    }
}
