//! The state of a para-virtual vCPU beside what the engine keeps, as one run of little-endian numbers.

use super::{Callback, PvCpu};

/// Counted up when the order of the numbers changes.
const VERSION: u64 = 2;

impl PvCpu {
    /// Everything that a guest may notice, in a fixed order behind the version.
    pub(super) fn record(&self) -> Vec<u8> {
        let mut words = vec![VERSION];
        for trap in self.traps.iter() {
            words.push(u64::from(trap.dpl) | u64::from(trap.masks_events) << 8);
            words.push(trap.address);
        }
        let c = &self.callbacks;
        for Callback { masks_events, address } in [c.event, c.failsafe, c.syscall, c.syscall32, c.sysenter] {
            words.extend([u64::from(masks_events), address]);
        }
        words.extend([self.kernel_sp, u64::from(self.iopl), u64::from(self.assist)]);
        words.extend([self.kernel_root, self.user_root, self.ldt.0, u64::from(self.ldt.1)]);
        words.extend([
            self.runstate_area,
            self.time_area,
            u64::from(self.runstate.state),
            self.runstate.entered,
        ]);
        words.extend(self.runstate.times);
        words.extend([u64::from(self.has_own_vcpu_info), self.cr4]);
        words.extend([u64::from(self.nmi_pending), u64::from(self.nmi_blocked)]);
        words.extend([u64::from(self.polling.is_some()), self.polling.unwrap_or(0)]);
        words.extend([self.io_bitmap.0, u64::from(self.io_bitmap.1)]);
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}
