use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::{Device, Nanos, PhysAddr, lock};

#[derive(Default)]
struct Kicks(AtomicU32);

impl Kick for Kicks {
    fn kick(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    apics: Vec<LocalApic>,
    io: Arc<Mutex<IoApic>>,
    fabric: Arc<ApicFabric>,
    kicks: Arc<Kicks>,
}

/// `count` enabled local APICs and an I/O APIC, as an operating system leaves them.
fn rig(count: u32, change: impl Fn(&mut LocalApicConfig)) -> Rig {
    let (fabric, kicks) = (ApicFabric::new(), Arc::new(Kicks::default()));
    let apics = (0..count).map(|id| {
        let mut config =
            LocalApicConfig { id, bootstrap: id == 0, timer_hz: 1_000_000_000, ..Default::default() };
        change(&mut config);
        let mut apic = LocalApic::new(config, fabric.clone(), kicks.clone());
        put(&mut apic, 0xF0, 0x1FF);
        apic
    });
    let apics = apics.collect();
    let io = Arc::new(Mutex::new(IoApic::new(IoApicConfig { id: 1 }, fabric.clone())));
    fabric.attach_io(&io);
    Rig { apics, io, fabric, kicks }
}

fn put(apic: &mut LocalApic, offset: u64, value: u32) {
    apic.write(offset, 4, value.into(), 0);
}

fn get(apic: &mut LocalApic, offset: u64) -> u32 {
    apic.read(offset, 4, 0) as u32
}

fn take(apic: &mut LocalApic) -> Option<u8> {
    apic.acknowledge(|| 0xEE)
}

fn redirect(rig: &Rig, pin: u8, low: u32, high: u32) {
    let mut io = lock(&rig.io);
    for (register, value) in [(0x11 + 2 * pin, high), (0x10 + 2 * pin, low)] {
        io.write(0x00, 4, register.into(), 0);
        io.write(0x10, 4, value.into(), 0);
    }
}

fn redirection(rig: &Rig, pin: u8) -> u32 {
    let mut io = lock(&rig.io);
    io.write(0x00, 4, u64::from(0x10 + 2 * pin), 0);
    io.read(0x10, 4, 0) as u32
}

#[test]
fn registers_after_reset() {
    let apic = &mut LocalApic::new(
        LocalApicConfig { id: 3, ..Default::default() },
        ApicFabric::new(),
        Arc::<Kicks>::default(),
    );
    assert_eq!(get(apic, 0x20), 3 << 24);
    assert_eq!(get(apic, 0x30) & 0xFF_00FF, 0x05_0014);
    assert_eq!((get(apic, 0xE0), get(apic, 0xF0)), (u32::MAX, 0xFF));
    for offset in (0x320..=0x370).step_by(0x10) {
        assert_eq!(get(apic, offset), 0x1_0000);
    }
    assert_eq!(apic.read_msr(0x1B, 0), Ok(0xFEE0_0900));
}

#[test]
fn priority_decides_what_is_taken() {
    let mut rig = rig(1, |_| {});
    let apic = &mut rig.apics[0];
    for vector in [0x41, 0x52, 0x51, 0x31] {
        apic.port().deliver(Delivery::Fixed, vector, false);
    }
    assert_eq!(take(apic), Some(0x52));
    assert_eq!(apic.pending(), None, "51h is in the same class");
    assert_eq!(get(apic, 0xA0), 0x50);
    put(apic, 0xB0, 0);
    assert_eq!(take(apic), Some(0x51));
    put(apic, 0xB0, 0);
    apic.set_cr8(4);
    assert_eq!((get(apic, 0x80), apic.pending()), (0x40, None));
    apic.set_cr8(3);
    assert_eq!(apic.pending(), Some(Pending::Fixed(0x41)));
    assert_eq!((get(apic, 0x210), get(apic, 0x220)), (1 << 0x11, 1 << 0x01), "requests of 31h and 41h");
}

#[test]
fn a_software_disabled_apic_masks_its_table_and_takes_no_vectors() {
    let mut rig = rig(1, |_| {});
    let apic = &mut rig.apics[0];
    put(apic, 0x320, 0x40);
    put(apic, 0xF0, 0xFF);
    assert_eq!(get(apic, 0x320), 0x1_0040);
    put(apic, 0x320, 0x40);
    assert_eq!(get(apic, 0x320), 0x1_0040);
    apic.port().deliver(Delivery::Fixed, 0x40, false);
    assert_eq!(apic.pending(), None);
    apic.port().deliver(Delivery::Nmi, 0, false);
    assert!(apic.port().take_nmi() && !apic.port().nmi_pending());
}

#[test]
fn one_shot_and_periodic_timers_interrupt() {
    let mut rig = rig(1, |_| {});
    let apic = &mut rig.apics[0];
    put(apic, 0x3E0, 0xB);
    put(apic, 0x320, 0x40);
    apic.write(0x380, 4, 5_000, 100);
    assert_eq!(apic.deadline(), Some(5_100));
    assert_eq!(apic.read(0x390, 4, 1_100) as u32, 4_000);
    apic.advance(5_100);
    assert_eq!((take(apic), apic.deadline()), (Some(0x40), None));
    put(apic, 0xB0, 0);
    apic.write(0x320, 4, 0x2_0041, 6_000);
    apic.write(0x380, 4, 2_000, 6_000);
    apic.advance(20_500);
    assert_eq!((take(apic), apic.deadline()), (Some(0x41), Some(22_000)));
    assert_eq!(apic.pending(), None);
    apic.write(0x320, 4, 0x3_0041, 20_500);
    assert_eq!(apic.deadline(), None, "a masked timer wakes nobody");
}

#[test]
fn tsc_deadline_fires_once_and_follows_the_counter() {
    let mut rig = rig(1, |config| config.tsc = TscClock { hz: 2_000_000_000, offset: 0 });
    let apic = &mut rig.apics[0];
    assert_eq!(apic.write_msr(0x6E0, 1_000, 0), Ok(()));
    assert_eq!(apic.read_msr(0x6E0, 0), Ok(0), "not in deadline mode");
    put(apic, 0x320, 0x4_0040);
    apic.write_msr(0x6E0, 10_000, 0).unwrap();
    assert_eq!(apic.deadline(), Some(5_000));
    apic.set_tsc(TscClock { hz: 2_000_000_000, offset: 4_000 }, 1_000);
    assert_eq!(apic.deadline(), Some(3_000));
    apic.advance(3_000);
    assert_eq!((take(apic), apic.read_msr(0x6E0, 3_000)), (Some(0x40), Ok(0)));
    put(apic, 0xB0, 0);
    apic.write_msr(0x6E0, 1, 4_000).unwrap();
    assert_eq!(take(apic), Some(0x40), "a deadline in the past fires at once");
    put(apic, 0xB0, 0);
    apic.write_msr(0x6E0, 1 << 40, 4_000).unwrap();
    put(apic, 0x320, 0x40);
    assert_eq!(apic.deadline(), None, "leaving the mode disarms");
}

#[test]
fn the_pic_comes_through_the_virtual_wire() {
    let mut rig = rig(1, |config| config.virtual_wire = true);
    let intr = LocalPin::new(rig.apics[0].port(), 0);
    let nmi = LocalPin::new(rig.apics[0].port(), 1);
    intr.set(true);
    assert_eq!(rig.apics[0].pending(), Some(Pending::ExtInt));
    assert_eq!(take(&mut rig.apics[0]), Some(0xEE));
    intr.set(false);
    assert_eq!(rig.apics[0].pending(), None);
    nmi.set(true);
    nmi.set(true);
    assert!(rig.apics[0].port().take_nmi() && !rig.apics[0].port().take_nmi());
    put(&mut rig.apics[0], 0x350, 0x1_0700);
    intr.set(true);
    assert_eq!(rig.apics[0].pending(), None);
    // Disabled by hardware the pin is INTR.
    rig.apics[0].write_msr(0x1B, 0xFEE0_0100, 0).unwrap();
    assert_eq!(rig.apics[0].pending(), Some(Pending::ExtInt));
}

#[test]
fn lint0_can_be_a_level_triggered_vector() {
    let mut rig = rig(1, |_| {});
    let pin = LocalPin::new(rig.apics[0].port(), 0);
    put(&mut rig.apics[0], 0x350, 0x8060);
    pin.set(true);
    assert_eq!(get(&mut rig.apics[0], 0x350), 0xC060);
    assert_eq!(take(&mut rig.apics[0]), Some(0x60));
    put(&mut rig.apics[0], 0xB0, 0);
    assert_eq!(take(&mut rig.apics[0]), Some(0x60), "still high");
    pin.set(false);
    put(&mut rig.apics[0], 0xB0, 0);
    assert_eq!((rig.apics[0].pending(), get(&mut rig.apics[0], 0x350)), (None, 0x8060));
}

#[test]
fn commands_reach_physical_logical_and_shorthand_destinations() {
    let mut rig = rig(3, |_| {});
    for (id, apic) in rig.apics.iter_mut().enumerate() {
        put(apic, 0xD0, 0x0100_0000 << id);
    }
    let mut send = |high: u32, low: u32| -> Vec<bool> {
        put(&mut rig.apics[0], 0x310, high);
        put(&mut rig.apics[0], 0x300, low);
        let taken = rig.apics.iter_mut().map(|apic| {
            let taken = take(apic).is_some();
            put(apic, 0xB0, 0);
            taken
        });
        taken.collect()
    };
    assert_eq!(send(2 << 24, 0x40), [false, false, true]);
    assert_eq!(send(0xFF << 24, 0x40), [true, true, true]);
    assert_eq!(send(0x06 << 24, 0x840), [false, true, true]);
    assert_eq!(send(0x06 << 24, 0x940), [false, true, false], "lowest priority, the first of equals");
    assert_eq!(send(0, 0x4_0040), [true, false, false]);
    assert_eq!(send(0, 0x8_0040), [true, true, true]);
    assert_eq!(send(0, 0xC_0040), [false, true, true]);
    assert_eq!(send(5 << 24, 0x40), [false, false, false]);
    for apic in &mut rig.apics {
        put(apic, 0xE0, 0);
        put(apic, 0xD0, 0x2100_0000);
    }
    put(&mut rig.apics[1], 0xD0, 0x3100_0000);
    put(&mut rig.apics[0], 0x310, 0x21 << 24);
    put(&mut rig.apics[0], 0x300, 0x850);
    assert_eq!([0, 1, 2].map(|i| rig.apics[i].pending().is_some()), [true, false, true], "clusters");
}

#[test]
fn init_and_startup_reach_the_other_processors() {
    let mut rig = rig(2, |_| {});
    put(&mut rig.apics[0], 0x310, 1 << 24);
    put(&mut rig.apics[0], 0x300, 0xC500);
    put(&mut rig.apics[0], 0x300, 0x8500); // De-assert: nothing.
    put(&mut rig.apics[0], 0x300, 0x0612);
    let port = rig.apics[1].port().clone();
    assert!(port.take_init() && !port.take_init());
    assert_eq!((port.take_startup(), port.take_startup()), (Some(0x12), None));
    assert!(rig.kicks.0.load(Ordering::SeqCst) >= 2);
    rig.apics[1].init();
    assert_eq!(get(&mut rig.apics[1], 0xF0), 0xFF);
    assert!(!rig.apics[0].port().take_init());
}

#[test]
fn x2apic_registers_are_msrs() {
    let mut rig = rig(2, |config| config.id += 0x12);
    let apic = &mut rig.apics[0];
    assert_eq!(apic.read_msr(0x802, 0), Err(Gp));
    assert_eq!(apic.write_msr(0x1B, 0xFEE0_0500, 0), Err(Gp), "x2APIC without enable");
    apic.write_msr(0x1B, 0xFEE0_0D00, 0).unwrap();
    assert_eq!(apic.write_msr(0x1B, 0xFEE0_0900, 0), Err(Gp), "no way back");
    assert_eq!((apic.base(), apic.read(0x20, 4, 0)), (None, 0xFFFF_FFFF));
    assert_eq!(apic.read_msr(0x802, 0), Ok(0x12));
    assert_eq!(apic.read_msr(0x80D, 0), Ok(0x1_0004));
    for (msr, value) in [
        (0x80E, 0),
        (0x802, 0),
        (0x80B, 1),
        (0x808, 0x100),
        (0x831, 0),
        (0x832, 1 << 20),
        (0x828, 1),
        (0x840, 0),
    ] {
        assert_eq!(apic.write_msr(msr, value, 0), Err(Gp), "{msr:#x}");
    }
    apic.write_msr(0x83F, 0x77, 0).unwrap();
    assert_eq!((apic.read_msr(0x823, 0), apic.read_msr(0x83F, 0)), (Ok(1 << 0x17), Err(Gp)));
    assert_eq!(take(apic), Some(0x77));
    apic.write_msr(0x80B, 0, 0).unwrap();
    apic.write_msr(0x830, 0x13 << 32 | 0x55, 0).unwrap();
    assert_eq!(
        (apic.read_msr(0x830, 0), rig.apics[1].pending()),
        (Ok(0x13 << 32 | 0x55), Some(Pending::Fixed(0x55)))
    );
    rig.apics[0].write_msr(0x1B, 0xFEE0_0100, 0).unwrap();
    assert_eq!(rig.apics[0].write_msr(0x1B, 0xFEE0_0D00, 0), Err(Gp), "disabled goes to xAPIC first");
    rig.apics[0].write_msr(0x1B, 0xFED0_0900, 0).unwrap();
    assert_eq!(rig.apics[0].base(), Some(PhysAddr(0xFED0_0000)));
    assert_eq!(rig.apics[0].write_msr(0x1B, 1 << 40 | 0x900, 0), Err(Gp));
}

#[test]
fn errors_are_latched_by_a_write() {
    let mut rig = rig(1, |_| {});
    let apic = &mut rig.apics[0];
    put(apic, 0x370, 0xFE);
    put(apic, 0x300, 0x4_0005);
    assert_eq!(take(apic), Some(0xFE));
    put(apic, 0xB0, 0);
    apic.port().deliver(Delivery::Fixed, 3, false);
    get(apic, 0x3D0);
    assert_eq!(get(apic, 0x280), 0);
    put(apic, 0x280, 0);
    assert_eq!(get(apic, 0x280), 0x20 | 0x40 | 0x80);
    put(apic, 0x280, 0);
    assert_eq!(get(apic, 0x280), 0);
}

#[test]
fn an_edge_pin_sends_once_per_edge_and_loses_masked_ones() {
    let mut rig = rig(1, |_| {});
    redirect(&rig, 4, 0x1_0034, 0);
    let pin = IoApicInput::new(&rig.io, 4);
    pin.set(true);
    redirect(&rig, 4, 0x34, 0);
    assert_eq!(rig.apics[0].pending(), None);
    pin.set(false);
    pin.set(true);
    assert_eq!(take(&mut rig.apics[0]), Some(0x34));
    put(&mut rig.apics[0], 0xB0, 0);
    assert_eq!(rig.apics[0].pending(), None);
}

#[test]
fn a_level_pin_is_served_until_it_falls() {
    let mut rig = rig(1, |_| {});
    redirect(&rig, 9, 0xA039, 0);
    let pin = IoApicInput::new(&rig.io, 9);
    pin.set(true);
    assert_eq!(redirection(&rig, 9), 0xE039);
    for _ in 0..2 {
        assert_eq!(take(&mut rig.apics[0]), Some(0x39));
        assert_eq!(get(&mut rig.apics[0], 0x190), 1 << 0x19, "trigger mode register");
        assert_eq!(rig.apics[0].pending(), None);
        put(&mut rig.apics[0], 0xB0, 0);
    }
    pin.set(false);
    assert_eq!(take(&mut rig.apics[0]), Some(0x39));
    put(&mut rig.apics[0], 0xB0, 0);
    assert_eq!((rig.apics[0].pending(), redirection(&rig, 9)), (None, 0xA039));
    // Masked, asserted, unmasked.
    redirect(&rig, 9, 0x1_A039, 0);
    pin.set(true);
    assert_eq!(rig.apics[0].pending(), None);
    redirect(&rig, 9, 0xA039, 0);
    assert_eq!(take(&mut rig.apics[0]), Some(0x39));
    // Without broadcast the I/O APIC is ended by its own register.
    put(&mut rig.apics[0], 0xF0, 0x11FF);
    pin.set(false);
    put(&mut rig.apics[0], 0xB0, 0);
    assert_eq!(redirection(&rig, 9), 0xE039);
    lock(&rig.io).write(0x40, 4, 0x39, 0);
    assert_eq!(redirection(&rig, 9), 0xA039);
}

#[test]
fn io_apic_delivers_extint_and_nmi() {
    let mut rig = rig(1, |_| {});
    redirect(&rig, 0, 0x700, 0);
    redirect(&rig, 1, 0x400, 0);
    IoApicInput::new(&rig.io, 0).set(true);
    assert_eq!(take(&mut rig.apics[0]), Some(0xEE));
    assert_eq!(rig.apics[0].pending(), None);
    IoApicInput::new(&rig.io, 1).set(true);
    assert!(rig.apics[0].port().take_nmi());
}

#[test]
fn io_apic_registers() {
    let rig = rig(1, |_| {});
    let mut io = lock(&rig.io);
    for (register, value) in
        [(0x00, 1 << 24), (0x01, 0x17_0020), (0x10, 0x1_0000), (0x3F, 0), (0x40, u32::MAX), (0x05, u32::MAX)]
    {
        io.write(0, 4, register, 0);
        assert_eq!(io.read(0x10, 4, 0) as u32, value, "{register:#x}");
    }
    io.write(0, 4, 0, 0);
    io.write(0x10, 4, 0x0F00_0000, 0);
    assert_eq!(io.read(0x10, 4, 0) as u32, 0x0F00_0000);
}

#[test]
fn a_message_signalled_interrupt_is_decoded() {
    let mut rig = rig(2, |_| {});
    rig.fabric.write_msi(0xFEE0_1000, 0x0041);
    assert_eq!(rig.apics[0].pending(), None);
    assert_eq!(take(&mut rig.apics[1]), Some(0x41));
}

#[test]
fn attention_is_raised_by_anything_that_may_matter() {
    let mut rig = rig(1, |config| config.virtual_wire = true);
    let port = rig.apics[0].port().clone();
    let checks: [&dyn Fn(&mut LocalApic); 4] = [
        &|apic| apic.port().deliver(Delivery::Fixed, 0x40, false),
        &|apic| put(apic, 0xB0, 0),
        &|apic| apic.set_cr8(0),
        &|apic| LocalPin::new(apic.port(), 0).set(true),
    ];
    for (i, check) in checks.iter().enumerate() {
        port.take_attention();
        check(&mut rig.apics[0]);
        assert!(port.attention(), "{i}");
    }
}

/// A vCPU that was told of an interrupt and could not take it looks again only when it is told again.
#[test]
fn what_a_lower_priority_lets_through_wakes_the_vcpu() {
    let mut rig = rig(1, |_| {});
    let (apic, kicks) = (&mut rig.apics[0], &rig.kicks.0);
    let woken = || kicks.swap(0, Ordering::SeqCst) > 0;
    apic.port().deliver(Delivery::Fixed, 0x51, false);
    apic.port().deliver(Delivery::Fixed, 0x41, false);
    assert_eq!(take(apic), Some(0x51));
    assert!(woken());
    assert_eq!((apic.pending(), woken()), (None, false), "41h waits for the end of 51h");
    put(apic, 0xB0, 0);
    assert_eq!((apic.pending(), woken()), (Some(Pending::Fixed(0x41)), true));
    assert_eq!(take(apic), Some(0x41));
    put(apic, 0xB0, 0);
    assert!(!woken(), "nothing more waits");
    apic.set_cr8(5);
    apic.port().deliver(Delivery::Fixed, 0x41, false);
    assert_eq!((apic.pending(), woken()), (None, true));
    apic.set_cr8(4);
    assert_eq!((apic.pending(), woken()), (None, false));
    apic.set_cr8(3);
    assert_eq!((apic.pending(), woken()), (Some(Pending::Fixed(0x41)), true));
}

#[test]
fn state_holds_requests_and_pins() {
    let mut rig = rig(1, |_| {});
    let pin = LocalPin::new(rig.apics[0].port(), 0);
    put(&mut rig.apics[0], 0x350, 0x8060);
    pin.set(true);
    rig.apics[0].port().deliver(Delivery::Nmi, 0, false);
    let saved = rig.apics[0].save();
    rig.apics[0].reset(0);
    assert_ne!(rig.apics[0].save(), saved);
    rig.apics[0].restore(&saved).unwrap();
    assert_eq!(rig.apics[0].save(), saved);
    assert_eq!(get(&mut rig.apics[0], 0x350), 0xC060);
    assert!(rig.apics[0].port().nmi_pending());
    assert_eq!(take(&mut rig.apics[0]), Some(0x60));
}

#[test]
fn timers_never_go_back_in_time() {
    let mut rig = rig(1, |_| {});
    let apic = &mut rig.apics[0];
    put(apic, 0x320, 0x2_0040);
    apic.write(0x380, 4, 7_777, 123);
    let mut last: Nanos = 0;
    for _ in 0..100 {
        let due = apic.deadline().unwrap();
        assert!(due > last);
        apic.advance(due);
        last = due;
    }
}
