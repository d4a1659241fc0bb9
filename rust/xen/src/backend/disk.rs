//! What a block device keeps its bytes in.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a sector, in which disks are measured.
pub const SECTOR: u64 = 512;

/// A disk's content. Any number of threads may use it; each call is whole or an error.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Bytes that there are.
    fn size(&self) -> u64;
    fn read_only(&self) -> bool;
    /// Fills all of `bytes` from `offset` on.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Returns when everything that was written is where it survives a loss of power.
    fn flush(&self) -> io::Result<()>;
    /// The range is not needed any more, and may read as zeros; [`io::ErrorKind::Unsupported`] where that cannot be.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
}

/// A raw image: byte for byte what the disk holds.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
    read_only: bool,
}

impl FileDisk {
    /// Opens an image. Whoever writes to it has it alone: two file systems mounted from one disk destroy it.
    ///
    /// # Errors
    /// When the host cannot open it, somebody else uses it ([`io::ErrorKind::WouldBlock`]), or it is no disk.
    pub fn open(path: &Path, read_only: bool) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        if file.metadata()?.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
        }
        host::lock(&file, read_only)?;
        // The size of a host's disk is not in its metadata.
        let size = file.seek(SeekFrom::End(0))?;
        if size == 0 || size % SECTOR != 0 {
            let what = format!("its size is {size} bytes, which is no number of sectors of {SECTOR}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(FileDisk { file, size, read_only })
    }
}

impl Storage for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        host::read_at(&self.file, offset, bytes)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        host::write_at(&self.file, offset, bytes)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        host::discard(&self.file, offset, length)
    }
}

#[cfg(unix)]
mod host {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{FlockOperation, flock};

    pub fn lock(file: &File, shared: bool) -> io::Result<()> {
        let how = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match flock(file, how) {
            // Some network file systems have no locks.
            Err(rustix::io::Errno::NOTSUP | rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    }

    pub fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }

    pub fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    #[cfg(target_os = "linux")]
    pub fn discard(file: &File, offset: u64, length: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, hole, offset, length).map_err(|error| match error {
            rustix::io::Errno::NOTSUP | rustix::io::Errno::NOSYS => io::ErrorKind::Unsupported.into(),
            other => other.into(),
        })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn discard(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(windows)]
mod host {
    use std::fs::File;
    use std::io;
    use std::os::windows::fs::FileExt;

    pub fn lock(_: &File, _: bool) -> io::Result<()> {
        Ok(())
    }

    pub fn read_at(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = file.seek_read(bytes, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    pub fn write_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = file.seek_write(bytes, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
            offset += count as u64;
        }
        Ok(())
    }

    pub fn discard(_: &File, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
