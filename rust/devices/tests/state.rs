//! What holds for every device: its state survives a round trip, differs when the device differs, is refused when it is
//! another's or damaged, and after a reset is that of a new device. And what holds under random traffic: no panic, no
//! deadline in the past, two equal devices stay equal, and a restored one goes on like the original.
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use trapgate_devices::acpi_pm::{AcpiPm, AcpiPmConfig};
use trapgate_devices::apic::{ApicFabric, IoApic, IoApicConfig, Kick, LocalApic, LocalApicConfig};
use trapgate_devices::debug::{DebugConsole, DebugExit, RecordedControl};
use trapgate_devices::dma::Dma;
use trapgate_devices::hpet::{Hpet, HpetLines};
use trapgate_devices::i8042::I8042;
use trapgate_devices::pci::{
    HostBridge, IsaBridge, PciAddress, PciHost, PirqRouter, PowerManagement, PowerManagementConfig, Regions,
};
use trapgate_devices::pic::PicPair;
use trapgate_devices::pit::Pit;
use trapgate_devices::port61::Port61;
use trapgate_devices::rtc::{Rtc, RtcConfig};
use trapgate_devices::system::{CoprocessorError, Port92, ResetControl, SmBus};
use trapgate_devices::uart::Uart;
use trapgate_devices::{Bus, ByteSink, Device, Nanos, NoLine, State, StateError};

struct Null;

impl ByteSink for Null {
    fn put(&mut self, _byte: u8) {}
}

impl Kick for Null {
    fn kick(&self) {}
}

fn control() -> Arc<RecordedControl> {
    Arc::default()
}

fn hpet() -> Hpet {
    Hpet::new(HpetLines {
        legacy: [NoLine::new(), NoLine::new()],
        legacy_select: NoLine::new(),
        pins: [0; 4].map(|_| NoLine::new()),
    })
}

fn rtc() -> Rtc {
    let config = RtcConfig { epoch_seconds: 1_700_000_000, low_memory: 64 << 20, high_memory: 0 };
    Rtc::new(config, NoLine::new(), NoLine::new())
}

fn local_apic() -> LocalApic {
    let config = LocalApicConfig { timer_hz: 1_000_000_000, virtual_wire: true, ..Default::default() };
    LocalApic::new(config, ApicFabric::new(), Arc::new(Null))
}

fn pci() -> PciHost {
    let (ports, memory) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let router = PirqRouter::new([0; 4].map(|_| NoLine::new()), (0..16).map(|_| NoLine::new()).collect());
    let mut host = PciHost::new(&ports, &memory, control());
    let bridge = Arc::new(Mutex::new(IsaBridge::new(router)));
    let power = Arc::new(Mutex::new(PowerManagement::new(PowerManagementConfig::default())));
    host.insert(PciAddress::new(0, 0), Arc::new(Mutex::new(HostBridge::new())), Regions::default()).unwrap();
    host.insert(PciAddress::new(1, 0), bridge, Regions::default()).unwrap();
    host.insert(PciAddress::new(1, 3), power, Regions::default()).unwrap();
    host
}

/// One access of random traffic.
#[derive(Clone, Debug)]
struct Access {
    offset: u64,
    size: u8,
    /// `None` reads.
    value: Option<u64>,
    /// Time that passes before it.
    wait: Nanos,
    /// Whether the due outputs are brought up to date first, as a board does.
    advance: bool,
}

fn access(length: u64) -> impl Strategy<Value = Access> {
    let size = prop_oneof![Just(1u8), Just(2), Just(4), Just(8)];
    let value =
        prop_oneof![any::<u64>(), 0u64..256, Just(0), Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit)];
    let wait = prop_oneof![0u64..2_000, 0u64..5_000_000_000, Just(0), (0u64..1).prop_map(|_| 1 << 50)];
    let access = (0..length, size, prop::option::weighted(0.7, value), wait, any::<bool>());
    access.prop_map(move |(offset, size, value, wait, advance)| {
        // The bus never lets an access run over the end of a chip.
        let size = if offset + u64::from(size) > length { 1 } else { size };
        Access { offset, size, value, wait, advance }
    })
}

fn run(device: &mut dyn Device, accesses: &[Access], now: &mut Nanos) -> Vec<u64> {
    let mut seen = Vec::new();
    for access in accesses {
        *now += access.wait;
        if access.advance && device.deadline().is_some_and(|due| due <= *now) {
            device.advance(*now);
            assert!(
                device.deadline().is_none_or(|due| due > *now),
                "still due after being brought up to date"
            );
        }
        match access.value {
            Some(value) => device.write(access.offset, access.size, value, *now),
            None => seen.push(device.read(access.offset, access.size, *now)),
        }
        assert!(
            device.deadline().is_none_or(|due| due > *now),
            "an access leaves nothing that is already due"
        );
        seen.push(device.deadline().unwrap_or(u64::MAX));
    }
    seen
}

fn refuses_what_is_not_its_own(device: &mut dyn Device) {
    let before = device.save();
    let other = State { kind: "something else".to_owned(), ..before.clone() };
    assert!(matches!(device.restore(&other), Err(StateError::Kind { .. })));
    let newer = State { version: u16::MAX, ..before.clone() };
    assert!(matches!(device.restore(&newer), Err(StateError::Version { .. })));
    for cut in 0..before.payload.len() {
        let cut = State { payload: before.payload[..cut].to_vec(), ..before.clone() };
        assert!(device.restore(&cut).is_err());
        assert_eq!(device.save(), before, "a refused record changed the device");
    }
}

/// The tests of one device: how to make it, the size of its register space, writes that change it, and whether those
/// changes are of a kind that a reset takes back.
macro_rules! device_tests {
    ($($name:ident: $make:expr, $length:expr, $changes:expr, $reset:expr;)*) => {$(
        mod $name {
            use super::*;

            const CHANGES: &[(u64, u8, u64)] = &$changes;

            fn changed() -> impl Device {
                let mut device = $make;
                CHANGES.iter().for_each(|&(offset, size, value)| device.write(offset, size, value, 1_000));
                device
            }

            #[test]
            fn state_survives_a_round_trip() {
                let (changed, mut fresh) = (changed(), $make);
                assert_eq!(changed.save().kind, changed.name());
                assert_eq!(changed.save() != fresh.save(), !CHANGES.is_empty(), "a modified device must differ");
                fresh.restore(&changed.save()).unwrap();
                assert_eq!(fresh.save(), changed.save());
                assert_eq!(fresh.deadline(), changed.deadline());
            }

            #[test]
            fn reset_gives_a_new_device() {
                let mut changed = changed();
                let before = changed.save();
                changed.reset(0);
                if $reset {
                    let mut fresh = $make;
                    fresh.reset(0);
                    assert_eq!(changed.save(), fresh.save());
                    assert_eq!(fresh.save(), $make.save(), "a new device is as after reset");
                } else {
                    assert_ne!(changed.save(), before);
                }
            }

            #[test]
            fn other_records_are_refused() {
                refuses_what_is_not_its_own(&mut changed());
            }

            proptest! {
                #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]
                #[test]
                fn random_traffic(
                    before in prop::collection::vec(access($length), 0..60),
                    after in prop::collection::vec(access($length), 0..60),
                ) {
                    let (mut a, mut b, mut c) = ($make, $make, $make);
                    let (mut now, mut same) = (0, 0);
                    prop_assert_eq!(run(&mut a, &before, &mut now), run(&mut b, &before, &mut same));
                    prop_assert_eq!(a.save(), b.save());
                    c.restore(&a.save()).unwrap();
                    let mut resumed = now;
                    prop_assert_eq!(run(&mut a, &after, &mut now), run(&mut c, &after, &mut resumed));
                    prop_assert_eq!(a.save(), c.save());
                }

                #[test]
                fn a_damaged_record_never_panics(
                    flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
                    after in prop::collection::vec(access($length), 0..40),
                ) {
                    let mut device = changed();
                    let mut state = device.save();
                    for (at, byte) in flips {
                        if !state.payload.is_empty() {
                            let at = at.index(state.payload.len());
                            state.payload[at] = byte;
                        }
                    }
                    // Whatever the record says, the device either refuses it or works on.
                    let _ = device.restore(&state);
                    let mut now = 2_000;
                    for access in &after {
                        now += access.wait;
                        device.advance(now);
                        device.deadline();
                        match access.value {
                            Some(value) => device.write(access.offset, access.size, value, now),
                            None => { device.read(access.offset, access.size, now); }
                        }
                    }
                }
            }
        }
    )*};
}

device_tests! {
    uart: Uart::new(Box::new(Null), NoLine::new()), 8, [(4, 1, 0x10), (1, 1, 0x0F), (0, 1, 0x41)], true;
    pic: PicPair::new(NoLine::new()), 6, [(0, 1, 0x11), (1, 1, 0x20), (1, 1, 4), (1, 1, 1), (4, 2, 0xFFFF)], true;
    pit: Pit::new(NoLine::new()), 4, [(3, 1, 0x34), (0, 1, 0x10), (0, 1, 0x27)], true;
    port61: Port61::new(Arc::new(Mutex::new(Pit::new(NoLine::new()))), NoLine::new()), 1, [(0, 1, 3)], true;
    rtc: rtc(), 4, [(0, 1, 0x8B), (1, 1, 0x42)], false;
    i8042: I8042::new(control(), NoLine::new(), NoLine::new(), NoLine::new()), 5, [(4, 1, 0xD4), (0, 1, 0xF4)], true;
    port92: Port92::new(control(), NoLine::new()), 1, [(0, 1, 2)], true;
    reset_control: ResetControl::new(control()), 1, [(0, 1, 6)], true;
    coprocessor: CoprocessorError::new(NoLine::new()), 2, [], true;
    smbus: SmBus::new(), 16, [(3, 4, 0x0102_0304), (2, 1, 0x48)], true;
    dma: Dma::new(), 64, [(4, 1, 0x12), (0x1F, 1, 7), (0x2A, 1, 9)], true;
    local_apic: local_apic(), 4096, [(0x320, 4, 0x2_0040), (0x380, 4, 100_000), (0x300, 4, 0x4_0050)], true;
    io_apic: IoApic::new(IoApicConfig::default(), ApicFabric::new()), 256, [(0, 4, 0x13), (0x10, 4, 0x0100_0000)], true;
    hpet: hpet(), 1024, [(0x10, 4, 1), (0x100, 4, 0x4C), (0x108, 8, 5_000)], true;
    acpi_pm: AcpiPm::new(AcpiPmConfig::default(), control(), NoLine::new()), 18, [(2, 2, 0x101), (0xE, 2, 3)], true;
    pci: pci(), 8, [(0, 4, 0x8000_0860), (4, 4, 0x0580_0B0A)], true;
    debug_console: DebugConsole::new(Box::new(Null)), 1, [], true;
    debug_exit: DebugExit::new(control()), 4, [], true;
}
