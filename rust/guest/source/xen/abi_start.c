/* The interface's test: what a kernel finds at its start, and what the shared pages say. */

#include "abi.h"

/* Nobody may write to a table, and the first tables are mapped with the rest of memory. */
#define PAGE_FAULT 14

static void test_start_info(void) {
    static const char magic[] = "xen-3.0-x86_64";
    bool same = true;
    for (u64 n = 0; n < sizeof magic; n++)
        same = same && start_info->magic[n] == magic[n];
    expect_true("start_info's magic", same);
    /* SIF_PRIVILEGED and SIF_INITDOMAIN are the control domain's. */
    expect("start_info's flags", start_info->flags & 3, 0);
    expect_true("start_info lies on a page", (u64)start_info % PAGE == 0);
    expect_true("start_info's tables", start_info->pt_base % PAGE == 0 && start_info->nr_pt_frames >= 4);
    expect("start_info without a ramdisk", (i64)(start_info->mod_start | start_info->mod_len), 0);
    expect_true("start_info's ports", start_info->console_event_channel && start_info->store_event_channel);
    expect_true("start_info's ports differ", start_info->console_event_channel != start_info->store_event_channel);
    u64 a = 0, c = 0, d = start_info->pt_base;
    expect("a store to the first root", (i64)TRY("mov %%rax, 8(%%rdx)", a, c, d), PAGE_FAULT);
}

/* The two lists lead to and fro, and no frame is number 0 or bears its page's number. */
static void test_lists(void) {
    const u64 *list = (const u64 *)start_info->mfn_list;
    const u64 *back = (const u64 *)HYPERVISOR_START;
    u64 wrong = 0;
    for (u64 page = 0; page < start_info->nr_pages; page++)
        wrong += !list[page] || list[page] == page || back[list[page]] != page;
    expect("pages that the lists lose", (i64)wrong, 0);
}

static void test_time(void) {
    expect("the time's version is even", this_vcpu->time_version & 1, 0);
    expect_true("the time's multiplier", this_vcpu->tsc_to_system_mul >> 31);
    expect("the wall clock's version is even", shared_info->wall_version & 1, 0);
    u64 before = system_time();
    for (u64 n = 0; n < 100; n++) {
        u64 now = system_time();
        if (now < before)
            expect("time that goes back", (i64)(before - now), 0);
        before = now;
    }
    expect_true("time goes on", system_time() >= before);
}

void test_start(void) {
    expect("events are masked at the start", this_vcpu->upcall_mask, 1);
    test_start_info();
    test_lists();
    test_time();
}
