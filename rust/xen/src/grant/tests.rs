//! Grants as back-ends use them, against what a guest may do with its table.

use super::*;
use crate::fake;
use crate::paging::FrameType;

const REF: u32 = 8;
const READING: u16 = 8;
const WRITING: u16 = 16;

#[test]
fn an_entry_says_how_it_is_used() {
    let domain = fake::domain();
    domain.test_grant(REF, 5);
    let read = domain.map_grant(REF, Access::Read).unwrap();
    assert_eq!(domain.test_flags(REF), 1 | READING);
    let write = domain.map_grant(REF, Access::Write).unwrap();
    let again = domain.map_grant(REF, Access::Write).unwrap();
    assert_eq!(domain.test_flags(REF), 1 | READING | WRITING);
    domain.unmap_grant(write);
    assert_eq!(domain.test_flags(REF), 1 | READING | WRITING);
    domain.unmap_grant(again);
    assert_eq!(domain.test_flags(REF), 1 | READING);
    domain.unmap_grant(read);
    assert_eq!((domain.test_flags(REF), domain.grants().in_use()), (1, 0));
}

#[test]
fn what_is_not_granted_is_refused_and_leaves_no_trace() {
    let domain = fake::domain();
    let mfn = domain.test_mfn(5).0 as u32;
    // Not valid, for a transfer, transitive, for another domain.
    for (flags, domid) in [(0, 0), (2, 0), (3, 0), (1, 7)] {
        domain.test_entry(REF, flags, domid, mfn);
        assert_eq!(domain.map_grant(REF, Access::Read).unwrap_err(), Status::General);
        assert_eq!(domain.test_flags(REF), flags);
    }
    domain.test_entry(REF, 1 | 4, 0, mfn);
    assert_eq!(domain.map_grant(REF, Access::Write).unwrap_err(), Status::General);
    let read = domain.map_grant(REF, Access::Read).unwrap();
    assert_eq!(read.write(domain.memory(), 0, &[1]), Err(Status::General));
    domain.unmap_grant(read);
    assert_eq!(domain.map_grant(512, Access::Read).unwrap_err(), Status::BadReference);
    assert_eq!(domain.map_grant(u32::MAX, Access::Read).unwrap_err(), Status::BadReference);
    assert_eq!(domain.grants().in_use(), 0);
}

#[test]
fn only_ram_of_the_domain_can_be_shared() {
    let domain = fake::domain();
    let others = [0, 1, u32::MAX, domain.layout.shared_info as u32, domain.layout.grants.start as u32];
    for frame in others {
        domain.test_entry(REF, 1, 0, frame);
        assert_eq!(domain.map_grant(REF, Access::Write).unwrap_err(), Status::BadPage, "{frame:#x}");
        assert_eq!(domain.test_flags(REF), 1);
    }
}

#[test]
fn a_page_table_can_be_read_but_not_written() {
    let domain = fake::domain();
    domain.paging().pin(&mut Later(&domain), 1, domain.test_mfn(6)).unwrap();
    domain.test_grant(REF, 6);
    assert_eq!(domain.map_grant(REF, Access::Write).unwrap_err(), Status::BadPage);
    let read = domain.map_grant(REF, Access::Read).unwrap();
    domain.unmap_grant(read);
    assert_eq!(domain.test_flags(REF), 1);
}

#[test]
fn a_page_in_use_becomes_no_page_table() {
    let domain = fake::domain();
    domain.test_grant(REF, 6);
    let write = domain.map_grant(REF, Access::Write).unwrap();
    assert!(domain.paging().pin(&mut Later(&domain), 1, domain.test_mfn(6)).is_err());
    domain.unmap_grant(write);
    domain.paging().pin(&mut Later(&domain), 1, domain.test_mfn(6)).unwrap();
}

#[test]
fn a_frame_that_is_given_back_stays_until_it_is_unmapped() {
    let domain = fake::domain();
    domain.test_grant(REF, 6);
    let mfn = domain.test_mfn(6);
    let write = domain.map_grant(REF, Access::Write).unwrap();
    domain.paging().decrease_reservation(&mut Later(&domain), mfn).unwrap();
    assert_ne!(domain.paging().frame(mfn).unwrap().refs, 0);
    assert!(!domain.take_stale_tlb());
    domain.unmap_grant(write);
    assert_eq!(domain.paging().frame(mfn).unwrap().refs, 0);
    // The vCPU may have had it writable.
    assert!(domain.take_stale_tlb());
    let frame = domain.paging().frame(mfn).unwrap();
    assert_eq!((frame.kind, frame.type_count), (FrameType::None, 0));
}

#[test]
fn an_entry_that_is_changed_while_in_use_changes_nothing() {
    let domain = fake::domain();
    domain.test_grant(REF, 5);
    let first = domain.map_grant(REF, Access::Write).unwrap();
    domain.test_grant(REF, 6);
    let second = domain.map_grant(REF, Access::Write).unwrap();
    second.write(domain.memory(), 0, b"here").unwrap();
    assert_eq!(&domain.test_read::<4>(5, 0), b"here");
    domain.unmap_grant(first);
    domain.unmap_grant(second);
    assert_eq!(domain.grants().in_use(), 0);
}

#[test]
fn copies_stay_inside_the_page() {
    let domain = fake::domain();
    domain.test_grant(REF, 5);
    domain.copy_to_grant(REF, 4090, b"twelve").unwrap();
    let mut bytes = [0; 6];
    domain.copy_from_grant(REF, 4090, &mut bytes).unwrap();
    assert_eq!(&bytes, b"twelve");
    for offset in [4091, 4096, usize::MAX] {
        assert_eq!(domain.copy_to_grant(REF, offset, b"twelve"), Err(Status::BadCopy));
        assert_eq!(domain.copy_from_grant(REF, offset, &mut bytes), Err(Status::BadCopy));
    }
    assert_eq!((domain.test_flags(REF), domain.grants().in_use()), (1, 0));
}
