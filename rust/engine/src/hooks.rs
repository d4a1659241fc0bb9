//! Hooks: what somebody outside wants to see. Filters are here; a hit ends the run with [`crate::Exit::Hook`] once the
//! state is exact, and whoever runs the engine serves the events and runs on.

use serde::{Deserialize, Serialize};

/// What a hook watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookKind {
    /// The instruction at a linear address, before it runs.
    Exec,
    /// Loads of linear addresses, after the instruction.
    MemRead,
    /// Stores to linear addresses, after the instruction.
    MemWrite,
    /// IN and INS, after the instruction.
    PortRead,
    /// OUT and OUTS, after the instruction.
    PortWrite,
    /// Exceptions and interrupts by vector, before the first instruction of the handler.
    Interrupt,
    /// CPUID by leaf, after the instruction.
    Cpuid,
}

/// Names one hook of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HookId(pub u32);

/// A hook that was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookEvent {
    pub hook: HookId,
    /// RIP of the instruction; always there once the engine has returned.
    pub rip: Option<u64>,
    /// Linear address, port, vector or leaf.
    pub at: u64,
    /// Size of the access in bytes; 0 where there is none.
    pub size: u64,
    /// Value that was read or written (its low 8 bytes), error code of an exception, subleaf of CPUID.
    pub value: u64,
}

#[derive(Clone, Copy, Debug)]
struct Hook {
    id: HookId,
    kind: HookKind,
    first: u64,
    last: u64,
}

/// The hooks of one vCPU and the events that wait to be served.
#[derive(Debug, Default)]
pub struct Hooks {
    all: Vec<Hook>,
    next_id: u32,
    /// Changes with every change of the execution hooks: part of the key of decoded code.
    pub(crate) generation: u32,
    pub(crate) exec: bool,
    pub(crate) memory: bool,
    events: Vec<HookEvent>,
    /// The execution hook at this count and linear address has been served: the instruction runs now.
    pub(crate) passed: Option<(u64, u64)>,
}

impl Hooks {
    /// Watches `first` to `last`, both included.
    pub(crate) fn add(&mut self, kind: HookKind, first: u64, last: u64) -> HookId {
        let id = HookId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.all.push(Hook { id, kind, first, last });
        self.changed();
        id
    }

    /// Takes a hook away; false if there is none of that name.
    pub(crate) fn remove(&mut self, id: HookId) -> bool {
        let before = self.all.len();
        self.all.retain(|hook| hook.id != id);
        self.events.retain(|event| event.hook != id);
        self.changed();
        self.all.len() != before
    }

    fn changed(&mut self) {
        let any = |kinds: &[HookKind]| self.all.iter().any(|hook| kinds.contains(&hook.kind));
        self.exec = any(&[HookKind::Exec]);
        self.memory = any(&[HookKind::MemRead, HookKind::MemWrite]);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Whether none is installed: the common case.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Whether a hook of this kind covers some of a range.
    pub(crate) fn covers(&self, kind: HookKind, first: u64, last: u64) -> bool {
        self.all.iter().any(|hook| hook.kind == kind && hook.first <= last && first <= hook.last)
    }

    /// Notes a hit for every hook that covers the range; whether there was one.
    pub(crate) fn hit(&mut self, kind: HookKind, event: HookEvent) -> bool {
        let last = event.at.saturating_add(event.size.saturating_sub(1));
        let before = self.events.len();
        for hook in &self.all {
            if hook.kind == kind && hook.first <= last && event.at <= hook.last {
                self.events.push(HookEvent { hook: hook.id, ..event });
            }
        }
        self.events.len() != before
    }

    /// Whether events wait.
    #[inline(always)]
    pub(crate) fn waiting(&self) -> bool {
        !self.events.is_empty()
    }

    /// Fills in the instruction that made the latest events.
    pub(crate) fn completed(&mut self, rip: u64) {
        for event in self.events.iter_mut().filter(|event| event.rip.is_none()) {
            event.rip = Some(rip);
        }
    }

    /// The instruction that made the latest events did not complete and will be started again.
    pub(crate) fn abandoned(&mut self) {
        self.events.retain(|event| event.rip.is_some());
    }

    /// Takes the events that wait, in order.
    pub(crate) fn take(&mut self) -> Vec<HookEvent> {
        std::mem::take(&mut self.events)
    }
}
