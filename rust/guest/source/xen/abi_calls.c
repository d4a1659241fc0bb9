/* The interface's test: calls that set something up and calls that only tell. */

#include "abi.h"

static char buffer[1024];

static i64 version(u64 command, const void *argument) {
    return hypercall(XEN_VERSION, command, (u64)argument, 0, 0);
}

static void test_version(void) {
    expect("xen_version version, its major number", version(0, 0) >> 16, 4);
    for (u64 command = 1; command <= 5; command++) {
        expect("xen_version that writes", version(command, buffer), 0);
        expect("xen_version to nowhere", version(command, (void *)NOWHERE), -EFAULT);
    }
    version(5, buffer);
    expect("xen_version platform_parameters, virt_start", *(i64 *)buffer, (i64)HYPERVISOR_START);
    u32 features[2] = {0, 0};
    expect("xen_version get_features", version(6, features), 0);
    /* mmu_pt_update_preserve_ad and gnttab_map_avail_bits: Linux stops without them. */
    expect("xen_version features 5 and 7", features[1] & 0xa0, 0xa0);
    /* writable_page_tables, writable_descriptor_tables, auto_translated_physmap, supervisor_mode_kernel. */
    expect("xen_version features 0 to 3", features[1] & 0x0f, 0);
    features[0] = 1;
    expect("xen_version get_features of another word", version(6, features), -EINVAL);
    expect("xen_version pagesize", version(7, 0), 4096);
    expect("xen_version guest_handle", version(8, buffer), 0);
    expect_either("xen_version commandline", version(9, buffer), -EPERM, 0);
    expect_either("xen_version build_id", version(10, buffer), -ENODATA, -ENOSYS);
    expect("xen_version unknown", version(11, buffer), -ENOSYS);
}

static i64 callback(u64 command, u16 type, u64 address) {
    struct {
        u16 type, flags;
        u32 pad;
        u64 address;
    } argument = {type, CALLBACK_MASKS_EVENTS, 0, address};
    return hypercall(CALLBACK_OP, command, (u64)&argument, 0, 0);
}

static void test_callbacks(void) {
    u64 somewhere = (u64)test_callbacks;
    expect("callback_op register failsafe", callback(0, 1, somewhere), 0);
    expect("callback_op register sysenter", callback(0, 5, somewhere), 0);
    expect("callback_op register syscall32", callback(0, 7, somewhere), 0);
    expect("callback_op register nmi", callback(0, 4, somewhere), 0);
    expect("callback_op register type 3", callback(0, 3, somewhere), -ENOSYS);
    expect("callback_op register type 6", callback(0, 6, somewhere), -ENOSYS);
    expect("callback_op register at no canonical address", callback(0, 1, NOT_CANONICAL), -EINVAL);
    expect("callback_op unregister nmi", callback(1, 4, 0), 0);
    expect("callback_op unregister event", callback(1, 0, 0), -EINVAL);
    expect("callback_op unregister syscall", callback(1, 2, 0), -EINVAL);
    expect("callback_op unregister unknown", callback(1, 6, 0), -ENOSYS);
    expect("callback_op unknown", callback(2, 0, 0), -ENOSYS);
    expect("callback_op from nowhere", hypercall(CALLBACK_OP, 0, NOWHERE, 0, 0), -EFAULT);
    expect("nmi_op register", hypercall(NMI_OP, 0, somewhere, 0, 0), 0);
    expect("nmi_op unregister", hypercall(NMI_OP, 1, 0, 0, 0), 0);
    expect("nmi_op unknown", hypercall(NMI_OP, 2, 0, 0, 0), -ENOSYS);
    expect("set_callbacks at no canonical address", hypercall(4, NOT_CANONICAL, 0, 0, 0), -EINVAL);
}

static void test_multicall(void) {
    struct multicall_entry calls[4] = {
        {XEN_VERSION, 1, {7}},
        {MULTICALL, 1, {0}},
        {11, 1, {0}},
        {XEN_VERSION, 1, {0}},
    };
    expect("multicall", hypercall(MULTICALL, (u64)calls, 4, 0, 0), 0);
    expect("multicall's first", calls[0].result, 4096);
    expect("multicall inside multicall", calls[1].result, -EINVAL);
    expect("multicall's third", calls[2].result, -ENOSYS);
    expect("multicall's last, behind failures", calls[3].result >> 16, 4);
    expect("multicall of none", hypercall(MULTICALL, (u64)calls, 0, 0, 0), 0);
    expect("multicall from nowhere", hypercall(MULTICALL, NOWHERE, 1, 0, 0), -EFAULT);
}

static i64 physdev(u64 command, u32 value) {
    u32 argument[4] = {value};
    return hypercall(PHYSDEV_OP, command, (u64)argument, 0, 0);
}

static void test_physdev(void) {
    expect("physdev_op set_iopl 4", physdev(6, 4), -EINVAL);
    expect("physdev_op set_iopl 1", physdev(6, 1), 0);
    expect("physdev_op set_iopl 0", physdev(6, 0), 0);
    expect("physdev_op set_iopl from nowhere", hypercall(PHYSDEV_OP, 6, NOWHERE, 0, 0), -EFAULT);
    expect("physdev_op set_iobitmap of none", physdev(7, 0), 0);
    expect_either("physdev_op pirq_eoi_gmfn", physdev(28, 0), -ENOSYS, -EINVAL);
    expect_either("physdev_op unknown", physdev(99, 0), -ENOSYS, -EPERM);
}

static void test_console_io(void) {
    expect("console_io write of nothing", hypercall(CONSOLE_IO, 0, 0, (u64)buffer, 0), 0);
    expect("console_io write from nowhere", hypercall(CONSOLE_IO, 0, 4, NOWHERE, 0), -EFAULT);
    expect("console_io read", hypercall(CONSOLE_IO, 1, sizeof buffer, (u64)buffer, 0), 0);
    expect("console_io unknown", hypercall(CONSOLE_IO, 2, 0, (u64)buffer, 0), -ENOSYS);
}

static void test_assists(void) {
    expect("vm_assist disable writable page tables", hypercall(VM_ASSIST, 1, 2, 0, 0), 0);
    expect("vm_assist enable writable page tables", hypercall(VM_ASSIST, 0, 2, 0, 0), 0);
    expect("vm_assist enable an unknown one", hypercall(VM_ASSIST, 0, 31, 0, 0), -EINVAL);
    expect("vm_assist enable one out of range", hypercall(VM_ASSIST, 0, 1000, 0, 0), -EINVAL);
}

static void test_grants(void) {
    struct {
        u16 domain, pad;
        u32 frames, most;
        short status;
    } size = {DOMID_SELF, 0, 0, 0, 1};
    expect("grant_table_op query_size", hypercall(GRANT_TABLE_OP, 6, (u64)&size, 1, 0), 0);
    expect("grant_table_op query_size, status", size.status, 0);
    expect_true("grant_table_op query_size, the most is at least what there is", size.most >= size.frames);
    expect("grant_table_op query_size from nowhere", hypercall(GRANT_TABLE_OP, 6, NOWHERE, 1, 0), -EFAULT);
    expect("grant_table_op unknown", hypercall(GRANT_TABLE_OP, 99, (u64)&size, 1, 0), -ENOSYS);
}

void test_small_calls(void) {
    test_version();
    test_callbacks();
    test_multicall();
    test_physdev();
    test_console_io();
    test_assists();
    test_grants();
}
