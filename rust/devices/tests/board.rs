//! Chips wired together as a board wires them: interrupts travel from the timer through both kinds of controller to the
//! local APIC, and several threads that use everything at once never wait for each other in a circle.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use trapgate_devices::apic::{
    ApicFabric, IoApic, IoApicConfig, IoApicInput, Kick, LocalApic, LocalApicConfig, LocalPin, Pending,
};
use trapgate_devices::line::{Splitter, WiredOr};
use trapgate_devices::pic::{PicInput, PicPair};
use trapgate_devices::pit::Pit;
use trapgate_devices::port61::Port61;
use trapgate_devices::uart::Uart;
use trapgate_devices::{Bus, ByteSink, Device, Line, NoLine, PhysAddr, Port, lock};

struct Null;

impl ByteSink for Null {
    fn put(&mut self, _byte: u8) {}
}

impl Kick for Null {
    fn kick(&self) {}
}

struct Board {
    ports: Bus<Port>,
    memory: Bus<PhysAddr>,
    pic: Arc<Mutex<PicPair>>,
    pit: Arc<Mutex<Pit>>,
    uart: Arc<Mutex<Uart>>,
    apics: Vec<Arc<Mutex<LocalApic>>>,
    sci: Arc<dyn Line>,
}

/// One PC with `count` processors. IRQ n goes to input n of the 8259A pair and pin n of the I/O APIC, but IRQ 0 to pin 2.
fn board(count: u32) -> Board {
    let fabric = ApicFabric::new();
    let apics: Vec<_> = (0..count)
        .map(|id| {
            let config = LocalApicConfig { id, bootstrap: id == 0, virtual_wire: true, ..Default::default() };
            Arc::new(Mutex::new(LocalApic::new(config, fabric.clone(), Arc::new(Null))))
        })
        .collect();
    let io = Arc::new(Mutex::new(IoApic::new(IoApicConfig { id: 2 }, fabric.clone())));
    fabric.attach_io(&io);
    let intr = Splitter::new(vec![LocalPin::new(lock(&apics[0]).port(), 0), IoApicInput::new(&io, 0)]);
    let pic = Arc::new(Mutex::new(PicPair::new(intr)));
    let irq = |n: u8| {
        let pin = if n == 0 { 2 } else { n };
        Splitter::new(vec![PicInput::new(&pic, n), IoApicInput::new(&io, pin)])
    };
    let pit = Arc::new(Mutex::new(Pit::new(irq(0))));
    let port61 = Arc::new(Mutex::new(Port61::new(pit.clone(), NoLine::new())));
    let uart = Arc::new(Mutex::new(Uart::new(Box::new(Null), irq(4))));
    let sci = WiredOr::new(irq(9)).source(0);
    let (ports, memory) = (Bus::new(), Bus::new());
    for (first, offset) in [(0x20, 0), (0xA0, 2), (0x4D0, 4)] {
        ports.insert(Port(first), 2, &pic, offset).unwrap();
    }
    ports.insert(Port(0x40), 4, &pit, 0).unwrap();
    ports.insert(Port(0x61), 1, &port61, 0).unwrap();
    ports.insert(Port(0x3F8), 8, &uart, 0).unwrap();
    memory.insert(PhysAddr(0xFEC0_0000), 0x1000, &io, 0).unwrap();
    Board { ports, memory, pic, pit, uart, apics, sci }
}

impl Board {
    fn out(&self, port: u16, value: u8) {
        self.ports.write(Port(port), 1, value.into(), 0);
    }

    /// As firmware sets the controllers up, everything unmasked.
    fn start_pic(&self) {
        for (base, words) in [(0x20, [0x11, 0x08, 0x04, 0x01]), (0xA0, [0x11, 0x70, 0x02, 0x01])] {
            self.out(base, words[0]);
            words[1..].iter().for_each(|&word| self.out(base + 1, word));
        }
    }

    /// Channel 0 at 1000 Hz.
    fn start_pit(&self) {
        for (port, value) in [(0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)] {
            self.out(port, value);
        }
    }

    fn redirect(&self, pin: u64, low: u64, high: u64) {
        for (register, value) in [(0x11 + 2 * pin, high), (0x10 + 2 * pin, low)] {
            self.memory.write(PhysAddr(0xFEC0_0000), 4, register, 0);
            self.memory.write(PhysAddr(0xFEC0_0010), 4, value, 0);
        }
    }

    fn take(&self, cpu: usize) -> Option<u8> {
        lock(&self.apics[cpu]).acknowledge(|| lock(&self.pic).acknowledge())
    }

    fn end(&self, cpu: usize) {
        lock(&self.apics[cpu]).write(0xB0, 4, 0, 0);
    }
}

#[test]
fn the_timer_comes_through_the_8259_and_the_virtual_wire() {
    let board = board(1);
    board.start_pic();
    board.start_pit();
    while board.take(0).is_some() {
        board.out(0x20, 0x20); // The edge that setting the mode gives.
    }
    let due = lock(&board.pit).deadline().unwrap();
    assert_eq!(lock(&board.apics[0]).pending(), None);
    lock(&board.pit).advance(due);
    assert_eq!(lock(&board.apics[0]).pending(), Some(Pending::ExtInt));
    assert_eq!((board.take(0), board.take(0)), (Some(0x08), None));
}

#[test]
fn the_timer_comes_through_the_io_apic_as_pin_2() {
    let board = board(2);
    board.out(0x21, 0xFF);
    board.out(0xA1, 0xFF);
    board.redirect(2, 0x30, 1 << 24);
    board.start_pit();
    let due = lock(&board.pit).deadline().unwrap();
    while board.take(1).is_some() {
        board.end(1);
    }
    lock(&board.pit).advance(due);
    assert_eq!((board.take(0), board.take(1)), (None, Some(0x30)));
}

#[test]
fn a_level_interrupt_comes_back_until_its_source_is_quiet() {
    let board = board(1);
    board.out(0x21, 0xFF);
    board.redirect(9, 0x8039, 0);
    board.sci.set(true);
    for _ in 0..3 {
        assert_eq!(board.take(0), Some(0x39));
        board.end(0);
    }
    board.sci.set(false);
    assert_eq!(board.take(0), Some(0x39), "sent before the line fell");
    board.end(0);
    assert_eq!(board.take(0), None);
}

#[test]
fn everything_at_once_on_several_threads_does_not_deadlock() {
    let board = Arc::new(board(2));
    board.start_pic();
    board.redirect(2, 0x8030, 0xFF00_0000);
    board.redirect(4, 0x8034, 0);
    board.redirect(9, 0x8039, 0x100_0000);
    let done = Arc::new(AtomicBool::new(false));
    let work: [fn(&Board, u64); 5] = [
        |board, i| {
            board.out(0x43, 0x34);
            board.out(0x40, 0x10);
            board.out(0x40, 0x00);
            lock(&board.pit).advance(i * 50_000);
            board.ports.read(Port(0x61), 1, i);
        },
        |board, i| {
            board.out(0x3FC, 0x08);
            board.out(0x3F9, (i & 3) as u8);
            board.out(0x3F8, b'x');
            lock(&board.uart).receive(b"y", i);
            board.ports.read(Port(0x3F8), 4, i);
        },
        |board, i| {
            board.take(0);
            board.end(0);
            board.out(0x20, 0x20);
            lock(&board.apics[0]).write(0x300, 4, 0xC_0050, i);
        },
        |board, i| {
            board.take(1);
            board.end(1);
            lock(&board.apics[1]).write(0x300, 4, 0x8_0051, i);
            lock(&board.apics[1]).advance(i);
        },
        |board, i| {
            board.sci.set(i % 2 == 0);
            board.out(0x4D1, 0x02);
            board.memory.read(PhysAddr(0xFEC0_0010), 4, i);
        },
    ];
    let threads: Vec<_> = work
        .map(|work| {
            let board = board.clone();
            std::thread::spawn(move || (0..3_000).for_each(|i| work(&board, i)))
        })
        .into();
    // A deadlock would hang the test run; end it with a message instead.
    let watched = done.clone();
    std::thread::spawn(move || {
        for _ in 0..1_200 {
            std::thread::sleep(Duration::from_millis(100));
            if watched.load(Ordering::SeqCst) {
                return;
            }
        }
        eprintln!("the threads wait for each other");
        std::process::exit(101);
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    done.store(true, Ordering::SeqCst);
}
