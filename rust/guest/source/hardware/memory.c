/* Page tables: hardware build. The kernel owns all memory, so an address that it is mapped at gives the physical address
 * by subtraction, and an entry changes by a store. What the processor has cached of it is the kernel's to drop. */

#include "hardware.h"

extern u64 boot_root[];

static u64 physical(const void *page) { return (u64)page - KERNEL_BASE; }

static u64 *table_below(u64 *entry) {
    u64 *table = page_take();
    *entry = physical(table) | PTE_TABLE;
    return table;
}

void space_make(struct space *space) {
    space->root = page_take();
    /* The upper half is the kernel's in every address space. */
    space->root[511] = boot_root[511];
    u64 *level3 = table_below(&space->root[USER_CODE >> 39 & 511]);
    u64 *level2 = table_below(&level3[USER_CODE >> 30 & 511]);
    space->leaf = table_below(&level2[USER_CODE >> 21 & 511]);
}

/* One instruction changes the address space and drops what was cached of the old one (SDM vol. 3, 4.10.4.1). */
void space_switch(struct space *space) { write_cr3(physical(space->root)); }

/* An entry that was not present was not cached, and one that allowed less heals by the fault that it causes (4.10.4.3). */
void page_map(struct space *space, u64 address, void *page, bool write) {
    space->leaf[index_of(address)] = physical(page) | PTE_PRESENT | PTE_USER | (write ? PTE_WRITE : 0);
}

void page_protect(struct space *space, u64 address) {
    space->leaf[index_of(address)] &= ~PTE_WRITE;
    invalidate_page(address);
}

void pages_unmap(struct space *space, u64 address, u64 count) {
    for (u64 n = 0; n < count; n++) {
        space->leaf[index_of(address + n * PAGE)] = 0;
        invalidate_page(address + n * PAGE);
    }
}
