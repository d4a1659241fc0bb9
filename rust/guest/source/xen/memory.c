/* Page tables: Xen PV build. The guest owns pages but not what is in its page tables: the processor uses those very
 * tables, so a wrong entry would open somebody else's memory. Pages that are tables are therefore mapped read-only, and
 * every change is a call that the hypervisor checks, or a store that it catches and checks. */

#include "xen.h"

struct shared_info *shared_info;
struct vcpu_info *this_vcpu;

/* An address to map the shared page at; what is mapped here at the start is not used. */
static u8 shared_page[PAGE] __attribute__((aligned(4096)));

static struct space *current_space;

/* Entries hold machine frames. Which of them a page of the guest's is, only a list tells: they need not be in order. */
u64 machine_frame(const void *page) {
    const u64 *list = (const u64 *)start_info->mfn_list;
    return list[((u64)page - KERNEL_BASE) / PAGE];
}

static u64 machine_address(const void *at) {
    return machine_frame(at) * PAGE + (u64)at % PAGE;
}

i64 mmuext(u32 command, u64 first) {
    struct mmuext_op op = {command, 0, first, 0};
    return hypercall(MMUEXT_OP, (u64)&op, 1, 0, DOMID_SELF);
}

void memory_start(void) {
    u64 entry = start_info->shared_info | PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED;
    must(hypercall(UPDATE_VA_MAPPING, (u64)shared_page, entry, FLUSH_PAGE, 0), "shared_info cannot be mapped");
    shared_info = (struct shared_info *)shared_page;
    this_vcpu = &shared_info->vcpu[0];
    /* Stores to lowest-level tables are to be carried out, where the guest still makes them: see page_protect. */
    must(hypercall(VM_ASSIST, ASSIST_ENABLE, ASSIST_WRITABLE_PAGE_TABLES, 0, 0), "vm_assist failed");
}

/* A page becomes a page table only when nobody can write to it any more, its owner included. */
static void make_read_only(void *page) {
    u64 entry = machine_frame(page) * PAGE | PTE_PRESENT | PTE_USER | PTE_ACCESSED;
    must(hypercall(UPDATE_VA_MAPPING, (u64)page, entry, FLUSH_PAGE, 0), "a page table cannot be made read-only");
}

static u64 *table_below(u64 *entry) {
    u64 *table = page_take();
    *entry = machine_frame(table) * PAGE | PTE_TABLE;
    return table;
}

/* The tables are filled while they are ordinary pages, then handed over by pinning the roots: the hypervisor walks and
 * checks them once, and they stay tables until they are unpinned. */
void space_make(struct space *space) {
    const u64 *boot_root = (const u64 *)start_info->pt_base;
    space->root = page_take();
    space->user_root = page_take();
    space->root[511] = boot_root[511];
    u64 slot = USER_CODE >> 39 & 511;
    u64 *level3 = table_below(&space->root[slot]);
    u64 *level2 = table_below(&level3[USER_CODE >> 30 & 511]);
    space->leaf = table_below(&level2[USER_CODE >> 21 & 511]);
    /* Kernel and user mode both run at CPL 3, where the U/S bit separates nobody: user mode gets a root without kernel. */
    space->user_root[slot] = space->root[slot];
    make_read_only(space->leaf);
    make_read_only(level2);
    make_read_only(level3);
    make_read_only(space->user_root);
    make_read_only(space->root);
    must(mmuext(PIN_L4_TABLE, machine_frame(space->root)), "the root cannot be pinned");
    must(mmuext(PIN_L4_TABLE, machine_frame(space->user_root)), "the user's root cannot be pinned");
}

/* Both roots change in one call. */
void space_switch(struct space *space) {
    struct mmuext_op ops[] = {
        {NEW_BASEPTR, 0, machine_frame(space->root), 0},
        {NEW_USER_BASEPTR, 0, machine_frame(space->user_root), 0},
    };
    must(hypercall(MMUEXT_OP, (u64)ops, 2, 0, DOMID_SELF), "the address space cannot be switched");
    current_space = space;
}

void page_map(struct space *space, u64 address, void *page, bool write) {
    u64 entry = machine_frame(page) * PAGE | PTE_PRESENT | PTE_USER | (write ? PTE_WRITE : 0);
    if (space == current_space) {
        must(hypercall(UPDATE_VA_MAPPING, address, entry, FLUSH_NONE, 0), "a page cannot be mapped");
        return;
    }
    struct mmu_update update = {machine_address(&space->leaf[index_of(address)]) | MMU_NORMAL, entry};
    must(hypercall(MMU_UPDATE, (u64)&update, 1, 0, DOMID_SELF), "a page cannot be mapped elsewhere");
}

/* The same line as in hardware/memory.c. The table is read-only, so the store faults; the hypervisor sees that it goes to
 * a lowest-level table, checks the entry and stores it. A kernel can be ported step by step this way, and each such place
 * costs a fault. */
void page_protect(struct space *space, u64 address) {
    *(volatile u64 *)&space->leaf[index_of(address)] &= ~PTE_WRITE;
    must(mmuext(INVLPG_LOCAL, address), "a page cannot be flushed");
}

/* Any number of entries, and the flush after them, in one call. */
void pages_unmap(struct space *space, u64 address, u64 count) {
    struct mmu_update updates[FRESH_PAGES];
    struct mmuext_op flush = {TLB_FLUSH_LOCAL, 0, 0, 0};
    for (u64 n = 0; n < count; n++)
        updates[n] = (struct mmu_update){machine_address(&space->leaf[index_of(address + n * PAGE)]), 0};
    struct multicall_entry calls[] = {
        {MMU_UPDATE, 0, {(u64)updates, count, 0, DOMID_SELF}},
        {MMUEXT_OP, 0, {(u64)&flush, 1, 0, DOMID_SELF}},
    };
    must(hypercall(MULTICALL, (u64)calls, 2, 0, 0), "multicall failed");
    must(calls[0].result, "pages cannot be unmapped");
    must(calls[1].result, "the cache of translations cannot be flushed");
}
