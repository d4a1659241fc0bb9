/* The interface's test: memory_op, by which memory is looked at, given back and taken again. */

#include "abi.h"

/* A page of the guest's that nothing has been put into and that nothing maps: memory has 4096 of them. */
#define SPARE 3000

static i64 memory(u64 command, const void *argument) {
    return hypercall(MEMORY_OP, command, (u64)argument, 0, 0);
}

static void test_sizes(void) {
    u16 self = DOMID_SELF;
    expect_true("memory_op maximum_ram_page", memory(2, 0) >= (i64)machine_frame((void *)KERNEL_BASE));
    expect("memory_op current_reservation", memory(3, &self), (i64)start_info->nr_pages);
    expect_true("memory_op maximum_reservation", memory(4, &self) >= (i64)start_info->nr_pages);
    expect("memory_op current_reservation from nowhere", memory(3, (void *)NOWHERE), -EFAULT);
    struct {
        u64 start, end, last;
    } mapping = {0, 0, 0};
    expect("memory_op machphys_mapping", memory(12, &mapping), 0);
    expect("where M2P begins", (i64)mapping.start, (i64)HYPERVISOR_START);
    u64 shared = ((u64 *)HYPERVISOR_START)[start_info->shared_info / PAGE];
    expect_true("M2P of the hypervisor's frame is no page of the guest's", shared >= start_info->nr_pages);
    expect_true("where M2P ends", mapping.end > mapping.start && mapping.last >= machine_frame((void *)KERNEL_BASE));
    expect("memory_op machphys_mapping to nowhere", memory(12, (void *)NOWHERE), -EFAULT);
}

static void test_map(void) {
    u8 entries[20 * 8];
    struct {
        u32 count, pad;
        u64 buffer;
    } map = {8, 0, (u64)entries};
    expect("memory_op memory_map", memory(9, &map), 0);
    expect_true("entries of the map", map.count >= 1 && map.count <= 8);
    expect_true("the map begins with RAM at 0", *(u64 *)entries == 0 && entries[16] == 1);
    map.buffer = NOWHERE;
    expect("memory_op memory_map to nowhere", memory(9, &map), -EFAULT);
}

struct reservation {
    u64 list, count;
    u32 order, flags;
    u16 domain, pad[3];
};

/* A frame may be given back while it is mapped: it goes when the mapping does. */
static void test_giving_back_what_is_mapped(u64 *page, u64 own, const struct reservation *reservation) {
    u64 *list = (u64 *)start_info->mfn_list;
    u64 *extent = (u64 *)reservation->list;
    page[9] = 99;
    expect("memory_op decrease_reservation of a mapped frame", memory(1, reservation), 1);
    expect("the frame while it is still mapped", (i64)page[9], 99);
    expect("the last mapping of a frame that was given back", map_page(page, own), 0);
    *extent = SPARE;
    expect("memory_op populate_physmap after it", memory(6, reservation), 1);
    list[SPARE] = *extent;
}

static void test_reservations(void) {
    u64 *list = (u64 *)start_info->mfn_list;
    u64 extent = list[SPARE];
    struct reservation reservation = {(u64)&extent, 1, 0, 0, DOMID_SELF, {0}};
    u16 self = DOMID_SELF;
    expect("memory_op decrease_reservation", memory(1, &reservation), 1);
    expect("the reservation after it", memory(3, &self), (i64)start_info->nr_pages - 1);
    expect("memory_op decrease_reservation again", memory(1, &reservation), 0);
    extent = SPARE;
    expect("memory_op populate_physmap", memory(6, &reservation), 1);
    expect("the reservation after that", memory(3, &self), (i64)start_info->nr_pages);
    list[SPARE] = extent;
    expect("M2P of the new frame", (i64)((u64 *)HYPERVISOR_START)[extent], SPARE);
    u64 *page = fresh_page();
    u64 own = writable_entry(page);
    expect("mapping the new frame", map_page(page, extent * PAGE | (own & ~PTE_ADDRESS)), 0);
    expect_true("the new frame is empty", !page[0] && !page[511]);
    test_giving_back_what_is_mapped(page, own, &reservation);
    extent = SPARE;
    expect("memory_op populate_physmap beyond the maximum", memory(6, &reservation), 0);
    reservation.count = 0;
    expect("memory_op decrease_reservation of none", memory(1, &reservation), 0);
}

static void test_refused(void) {
    u8 buffer[128] = {0};
    expect_either("memory_op machphys_mfn_list", memory(5, buffer), -EINVAL, -ENOSYS);
    expect("memory_op add_to_physmap", memory(7, buffer), -EINVAL);
    expect("memory_op machine_memory_map", memory(10, buffer), -EPERM);
    expect("memory_op maximum_gpfn", memory(14, buffer), -ENOSYS);
    expect("memory_op unknown", memory(60, buffer), -ENOSYS);
}

void test_memory(void) {
    test_sizes();
    test_map();
    test_reservations();
    test_refused();
}
