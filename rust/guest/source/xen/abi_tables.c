/* The interface's test: page tables. A page is a table or it can be written, never both; every entry is looked at. */

#include "abi.h"

#define PAGE_FAULT 14
#define PTE_NO_CACHE 0x010ul
#define PTE_LARGE 0x080ul

static struct space space;

static i64 update(u64 pointer, u64 value) {
    struct mmu_update request = {pointer, value};
    return hypercall(MMU_UPDATE, (u64)&request, 1, 0, DOMID_SELF);
}

static u64 address_of(const void *entry) { return machine_frame(entry) * PAGE + (u64)entry % PAGE; }

static void test_update_va_mapping(void *page) {
    u64 entry = writable_entry(page);
    expect("update_va_mapping read-only", map_page(page, read_only_entry(page)), 0);
    u64 a = 0, c = 0, d = (u64)page;
    expect("a store to a page made read-only", (i64)TRY("movq $1, (%%rdx)", a, c, d), PAGE_FAULT);
    expect("update_va_mapping writable", map_page(page, entry), 0);
    expect("a store to a page made writable", (i64)TRY("movq $1, (%%rdx)", a, c, d), NO_TRAP);
    expect("update_va_mapping with PCD", map_page(page, entry | PTE_NO_CACHE), -EINVAL);
    expect("update_va_mapping with PAT", map_page(page, entry | PTE_LARGE), -EINVAL);
    expect("update_va_mapping of a frame that is no RAM", map_page(page, 0xfffffff000 | PTE_PRESENT), -EPERM);
    expect("update_va_mapping of all ones", map_page(page, PTE_ADDRESS | PTE_PRESENT), -EINVAL);
    expect("update_va_mapping of a table, writable", map_page(page, writable_entry(space.leaf)), -EBUSY);
    expect("update_va_mapping of a table, read-only", map_page(page, read_only_entry(space.leaf)), 0);
    expect("update_va_mapping back", map_page(page, entry), 0);
    expect("update_va_mapping without a table", hypercall(UPDATE_VA_MAPPING, USER_END + (1ul << 39), entry, 0, 0),
           -EINVAL);
    expect("update_va_mapping in the hypervisor", hypercall(UPDATE_VA_MAPPING, HYPERVISOR_START, entry, 0, 0), -EINVAL);
    expect("update_va_mapping not canonical", hypercall(UPDATE_VA_MAPPING, NOT_CANONICAL, entry, 0, 0), -EINVAL);
}

static void test_mmu_update(u64 *page) {
    u64 leaf = address_of(&space.leaf[5]);
    expect("mmu_update of none", hypercall(MMU_UPDATE, 0, 0, 0, DOMID_SELF), 0);
    expect("mmu_update of an L1", update(leaf, writable_entry(page)), 0);
    /* Walks have set D since: PRESERVE_AD keeps it. */
    expect("mmu_update, accessed and dirty", update(leaf, writable_entry(page) | PTE_DIRTY), 0);
    expect("mmu_update PRESERVE_AD", update(leaf | 2, writable_entry(page)), 0);
    expect("the entry after PRESERVE_AD", (i64)space.leaf[5], (i64)(writable_entry(page) | PTE_DIRTY));
    expect("mmu_update NO_TRANSLATE", update(leaf | 3, 0), 0);
    expect("mmu_update of an unknown kind", update(leaf | 5, 0), -ENOSYS);
    expect("mmu_update of an L1 with PCD", update(leaf, writable_entry(page) | PTE_NO_CACHE), -EINVAL);
    expect("mmu_update of an L1 to a table, writable", update(leaf, writable_entry(space.leaf)), -EBUSY);
    expect_error("mmu_update in a frame that is no RAM", update(0xfffffff000, 0));
    expect("mmu_update from nowhere", hypercall(MMU_UPDATE, NOWHERE, 1, 0, DOMID_SELF), -EFAULT);
    expect_error("mmu_update for another domain", hypercall(MMU_UPDATE, NOWHERE, 1, 0, 77));
    expect("mmu_update of the hypervisor's slots", update(address_of(&space.root[256]), 0), -EINVAL);
    u64 self = address_of(&space.root[3]);
    expect("mmu_update of a root to itself", update(self, machine_frame(space.root) * PAGE | PTE_TABLE), -EINVAL);
    expect("mmu_update of a root to a page of data", update(self, machine_frame(page) * PAGE | PTE_TABLE), -EINVAL);
    expect("mmu_update of a page of data", update(address_of(&page[7]), 77), 0);
    expect("the page of data", (i64)page[7], 77);
    /* The first failure ends it, and the guest is told how far it came. */
    struct mmu_update list[] = {{leaf, 0}, {leaf, writable_entry(page) | PTE_LARGE}, {leaf, 0}};
    u32 done = 99;
    expect("mmu_update whose second fails", hypercall(MMU_UPDATE, (u64)list, 3, (u64)&done, DOMID_SELF), -EINVAL);
    expect("how many of them were done", done, 1);
    u64 pfn = ((u64)page - KERNEL_BASE) / PAGE;
    expect("mmu_update MACHPHYS", update(machine_frame(page) * PAGE | 1, pfn + 1), 0);
    expect("M2P after MACHPHYS", (i64)((u64 *)HYPERVISOR_START)[machine_frame(page)], (i64)pfn + 1);
    expect("mmu_update MACHPHYS back", update(machine_frame(page) * PAGE | 1, pfn), 0);
    expect_error("mmu_update MACHPHYS of a frame that is no RAM", update(0xfffffff000 | 1, 0));
}

static void test_trapped_stores(u64 *page) {
    u64 a = writable_entry(page), c = 0, d = (u64)&space.leaf[6];
    expect("a store to an L1", (i64)TRY("mov %%rax, (%%rdx)", a, c, d), NO_TRAP);
    expect("the entry that was stored", (i64)space.leaf[6], (i64)a);
    a = 0;
    expect("an exchange with an L1", (i64)TRY("xchg %%rax, (%%rdx)", a, c, d), NO_TRAP);
    expect("what the exchange gave", (i64)a, (i64)writable_entry(page));
    a = writable_entry(space.leaf);
    expect("a store of a forbidden entry", (i64)TRY("mov %%rax, (%%rdx)", a, c, d), PAGE_FAULT);
    expect("the entry after it", (i64)space.leaf[6], 0);
    a = 0, d = (u64)&space.root[3];
    expect("a store to an L4", (i64)TRY("mov %%rax, (%%rdx)", a, c, d), PAGE_FAULT);
    d = HYPERVISOR_START + 8 * machine_frame(page);
    expect("a store to M2P", (i64)TRY("mov %%rax, (%%rdx)", a, c, d), PAGE_FAULT);
}

static void test_pins(void *page) {
    u64 frame = machine_frame(page);
    u64 root = machine_frame(space.root);
    expect("PIN_L1 of a writable page", mmuext(PIN_L1_TABLE, frame), -EINVAL);
    map_page(page, read_only_entry(page));
    expect("PIN_L1", mmuext(PIN_L1_TABLE, frame), 0);
    expect("PIN_L1 again", mmuext(PIN_L1_TABLE, frame), -EINVAL);
    expect("PIN_L4 of an L1", mmuext(PIN_L4_TABLE, frame), -EINVAL);
    expect("a pinned page made writable", map_page(page, writable_entry(page)), -EBUSY);
    expect("UNPIN", mmuext(UNPIN_TABLE, frame), 0);
    expect("UNPIN again", mmuext(UNPIN_TABLE, frame), -EINVAL);
    expect("an unpinned page made writable", map_page(page, writable_entry(page)), 0);
    expect("PIN_L4 of a pinned root", mmuext(PIN_L4_TABLE, root), -EINVAL);
    expect_error("NEW_BASEPTR to a page of data", mmuext(NEW_BASEPTR, frame));
    expect_error("NEW_BASEPTR to none", mmuext(NEW_BASEPTR, 0));
    expect("NEW_USER_BASEPTR", mmuext(NEW_USER_BASEPTR, machine_frame(space.user_root)), 0);
    expect("NEW_USER_BASEPTR to none", mmuext(NEW_USER_BASEPTR, 0), 0);
    expect("NEW_BASEPTR", mmuext(NEW_BASEPTR, root), 0);
    expect("NEW_BASEPTR back", mmuext(NEW_BASEPTR, machine_frame((void *)start_info->pt_base)), 0);
}

static i64 mmuext2(u32 command, u64 first, u64 second) {
    struct mmuext_op op = {command, 0, first, second};
    return hypercall(MMUEXT_OP, (u64)&op, 1, 0, DOMID_SELF);
}

static void test_other_mmuext(u64 *page) {
    u64 here = 1;
    expect("TLB_FLUSH_LOCAL", mmuext(6, 0), 0);
    expect("INVLPG_LOCAL", mmuext(7, (u64)page), 0);
    expect("TLB_FLUSH_MULTI", mmuext2(8, 0, (u64)&here), 0);
    expect("TLB_FLUSH_MULTI with a bitmap from nowhere", mmuext2(8, 0, NOWHERE), -EFAULT);
    expect("INVLPG_MULTI", mmuext2(9, (u64)page, (u64)&here), 0);
    expect("TLB_FLUSH_ALL", mmuext(10, 0), 0);
    expect("INVLPG_ALL", mmuext(11, (u64)page), 0);
    expect("FLUSH_CACHE without devices", mmuext(12, 0), -EACCES);
    expect("FLUSH_CACHE_GLOBAL without devices", mmuext(18, 0), -EACCES);
    expect("SET_LDT of none", mmuext2(13, 0, 0), 0);
    expect("SET_LDT off a page", mmuext2(13, (u64)page + 8, 1), -EINVAL);
    expect("SET_LDT that is too long", mmuext2(13, (u64)page, 8193), -EINVAL);
    page[3] = 33;
    expect("CLEAR_PAGE", mmuext(16, machine_frame(page)), 0);
    expect("the cleared page", (i64)page[3], 0);
    u64 *other = fresh_page();
    other[3] = 44;
    expect("COPY_PAGE", mmuext2(17, machine_frame(page), machine_frame(other)), 0);
    expect("the copied page", (i64)page[3], 44);
    expect_error("CLEAR_PAGE of a table", mmuext(16, machine_frame(space.leaf)));
    expect("MARK_SUPER", mmuext(19, 0), -EOPNOTSUPP);
    expect("UNMARK_SUPER", mmuext(20, 0), -EOPNOTSUPP);
    expect("mmuext_op unknown", mmuext(99, 0), -ENOSYS);
    expect("mmuext_op of none", hypercall(MMUEXT_OP, 0, 0, 0, DOMID_SELF), 0);
    expect("mmuext_op from nowhere", hypercall(MMUEXT_OP, NOWHERE, 1, 0, DOMID_SELF), -EFAULT);
    expect_error("mmuext_op for another domain", hypercall(MMUEXT_OP, NOWHERE, 1, 0, 77));
}

void test_page_tables(void) {
    u64 *page = fresh_page();
    space_make(&space);
    test_update_va_mapping(page);
    test_mmu_update(page);
    test_trapped_stores(page);
    test_pins(fresh_page());
    test_other_mmuext(page);
}
