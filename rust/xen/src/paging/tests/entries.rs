//! Smoke.
use super::*;
use trapgate_engine::memory::Region;

#[test]
fn a_small_domain_pins_and_runs() {
    let region = |start: u64, frames: u64| Region { start: start << 12, len: frames << 12, read_only: false };
    let memory =
        Arc::new(GuestMemory::new(&[region(0x1000, 64), region(0x5000, 2), region(0x6000, 1)]).unwrap());
    let mut p = DirectPaging::new(memory.clone(), 0x1000..0x1040, 48, 0x5000..0x5002, 0x6000 << 12).unwrap();
    let t = &mut Told::default();
    let put = |m: u64, i: u64, v: u64| memory.write((m << 12) + i * 8, &v.to_le_bytes()).unwrap();
    put(0x1000, 511, 0x1001 << 12 | 7);
    put(0x1001, 510, 0x1002 << 12 | 7);
    put(0x1002, 0, 0x1003 << 12 | 7);
    for i in 0..48 {
        put(0x1003, i, (0x1000 + i) << 12 | if i < 4 { 5 } else { 7 });
    }
    p.pin(t, 4, Mfn(0x1000)).unwrap();
    p.set_kernel_root(t, 0, Mfn(0x1000)).unwrap();
    assert_eq!(p.update_va_mapping(t, 0, 0xffff_ffff_8000_0000, 0x1000 << 12 | 7), Err(Errno::Busy));
    p.update_va_mapping(t, 0, 0xffff_ffff_8000_5000, 0x5000 << 12 | 7).unwrap();
    assert!(p.is_live_l1(Mfn(0x1003)));
    assert_eq!(p.trapped_store(t, (0x1003 << 12) | (5 * 8), 8, Some(0), 0), Ok(false));
    assert_eq!(p.trapped_store(t, (0x1003 << 12) | (5 * 8), 1, Some(7), 5), Ok(true));
    p.decrease_reservation(t, Mfn(0x1005)).unwrap();
    assert_eq!(p.owned_frames(), 47);
    assert_eq!(p.populate(9), Some(Mfn(0x1005)));
}
