/* The interface's test: the processor as a para-virtual kernel sees it. Privileged instructions fault, and the hypervisor
 * carries out those that kernels have kept (xen/arch/x86/pv/emul-priv-op.c); the others come back as exceptions. */

#include "abi.h"

#define BREAKPOINT 3
#define UNDEFINED 6
#define NOT_AVAILABLE 7

extern char breakpoint_entry[];
#define PROTECTION 13

static void test_trap_table(void) {
    struct trap_info list[] = {{200, 0, 0xe033, 0, (u64)test_trap_table}, {201, 0, 0xe033, 0, 0}};
    expect("set_trap_table", hypercall(SET_TRAP_TABLE, (u64)list, 0, 0, 0), 0);
    list[0].address = NOT_CANONICAL;
    expect("set_trap_table at no canonical address", hypercall(SET_TRAP_TABLE, (u64)list, 0, 0, 0), -EINVAL);
    expect("set_trap_table from nowhere", hypercall(SET_TRAP_TABLE, NOWHERE, 0, 0, 0), -EFAULT);
    /* Only a gate of privilege 1 and more may be called from the kernel, which runs where privilege 1 would be. */
    u64 a = 0, c = 0, d = 0;
    expect("INT 200 whose gate has privilege 0", (i64)TRY("int $200", a, c, d), PROTECTION);
    expect("its error code", (i64)caught_frame.error, 200 * 8 + 2);
    struct trap_info open[] = {{201, 1, 0xe033, 0, (u64)breakpoint_entry}, {0, 0, 0, 0, 0}};
    hypercall(SET_TRAP_TABLE, (u64)open, 0, 0, 0);
    expect("INT 201 whose gate has privilege 1", (i64)TRY_SOFTWARE("int $201", a, c, d), BREAKPOINT);
    expect("INT3, which is never refused", (i64)TRY_SOFTWARE("int3", a, c, d), BREAKPOINT);
}

static i64 debug_register(u64 number, u64 value) { return hypercall(SET_DEBUGREG, number, value, 0, 0); }

static void test_debug_registers(void) {
    expect("set_debugreg 0", debug_register(0, 0x1000), 0);
    expect("get_debugreg 0", hypercall(GET_DEBUGREG, 0, 0, 0, 0), 0x1000);
    expect("set_debugreg 1 to the hypervisor", debug_register(1, HYPERVISOR_START), -EPERM);
    expect("set_debugreg 7 with bit 32", debug_register(7, 1ul << 32), -EINVAL);
    expect("set_debugreg 7 with GD", debug_register(7, 1ul << 13), -EPERM);
    expect("get_debugreg 4 is 6", hypercall(GET_DEBUGREG, 4, 0, 0, 0), hypercall(GET_DEBUGREG, 6, 0, 0, 0));
    expect("set_debugreg 0 back", debug_register(0, 0), 0);
}

static void test_segments(void) {
    u64 a = 0, c = 0xc0000100, d = 0;
    expect("set_segment_base FS", hypercall(SET_SEGMENT_BASE, 0, 0x123456789000, 0, 0), 0);
    expect("RDMSR of FS_BASE", (i64)TRY("rdmsr", a, c, d), NO_TRAP);
    expect("FS_BASE", (i64)(d << 32 | a), 0x123456789000);
    expect("set_segment_base user GS", hypercall(SET_SEGMENT_BASE, 1, 0x1000, 0, 0), 0);
    expect("set_segment_base kernel GS", hypercall(SET_SEGMENT_BASE, 2, 0x2000, 0, 0), 0);
    c = 0xc0000101;
    TRY("rdmsr", a, c, d);
    expect("GS_BASE", (i64)(d << 32 | a), 0x2000);
    c = 0xc0000102;
    TRY("rdmsr", a, c, d);
    expect("KERNEL_GS_BASE", (i64)(d << 32 | a), 0x1000);
    expect("set_segment_base with a selector that is none", hypercall(SET_SEGMENT_BASE, 3, 0xfff8, 0, 0), 0);
    expect("set_segment_base unknown", hypercall(SET_SEGMENT_BASE, 4, 0, 0, 0), -EINVAL);
    expect("set_segment_base not canonical", hypercall(SET_SEGMENT_BASE, 0, NOT_CANONICAL, 0, 0), -EINVAL);
    hypercall(SET_SEGMENT_BASE, 0, 0, 0, 0);
}

/* A descriptor table: privilege becomes 3, what is no code or data is refused, and so is a table that can be written. */
static void test_descriptors(void) {
    u64 *table = fresh_page();
    u64 frame = machine_frame(table);
    table[1] = 0x00cf92000000ffff;
    expect("set_gdt of a writable page", hypercall(SET_GDT, (u64)&frame, 512, 0, 0), -EINVAL);
    map_page(table, read_only_entry(table));
    expect("set_gdt", hypercall(SET_GDT, (u64)&frame, 512, 0, 0), 0);
    expect("a descriptor's privilege", table[1] >> 45 & 3, 3);
    u64 address = frame * PAGE;
    expect("update_descriptor", hypercall(UPDATE_DESCRIPTOR, address + 16, 0x00cf92000000ffff, 0, 0), 0);
    expect("the new descriptor's privilege", table[2] >> 45 & 3, 3);
    expect("update_descriptor off its place", hypercall(UPDATE_DESCRIPTOR, address + 4, 0, 0, 0), -EINVAL);
    /* An available task-state segment. */
    expect("update_descriptor of the system's", hypercall(UPDATE_DESCRIPTOR, address + 16, 0x89ul << 40, 0, 0), -EINVAL);
    expect_error("update_descriptor of nobody's frame", hypercall(UPDATE_DESCRIPTOR, 1ul << 50, 0, 0, 0));
    expect("a descriptor table made writable", map_page(table, writable_entry(table)), -EBUSY);
    u64 a = 0x13, c = 0, d = 0;
    expect("loading the new descriptor", (i64)TRY("mov %%eax, %%ds", a, c, d), NO_TRAP);
    asm volatile("mov %0, %%ds" : : "r"(0));
    expect("set_gdt that is too long", hypercall(SET_GDT, (u64)&frame, 7169, 0, 0), -EINVAL);
    expect("set_gdt from nowhere", hypercall(SET_GDT, NOWHERE, 512, 0, 0), -EFAULT);
    expect("set_gdt of none", hypercall(SET_GDT, (u64)&frame, 0, 0, 0), 0);
    expect("the old table made writable", map_page(table, writable_entry(table)), 0);
}

static void expect_msr(const char *what, u64 number, u64 wanted) {
    u64 a = 0, c = number, d = 0;
    expect("RDMSR", (i64)TRY("rdmsr", a, c, d), NO_TRAP);
    expect(what, (i64)(d << 32 | a), (i64)wanted);
}

static void test_control_registers(void) {
    u64 a = 0, c = 0, d = 0;
    TRY("mov %%cr0, %%rax", a, c, d);
    expect("MOV to CR0 with what it is", (i64)TRY("mov %%rax, %%cr0", a, c, d), NO_TRAP);
    a &= ~1ul << 16;
    expect("MOV to CR0 without WP", (i64)TRY("mov %%rax, %%cr0", a, c, d), PROTECTION);
    TRY("mov %%cr4, %%rax", a, c, d);
    u64 before = a;
    /* PGE is not the guest's to choose: the write is carried out without it. */
    a |= 1ul << 7;
    expect("MOV to CR4 with PGE", (i64)TRY("mov %%rax, %%cr4", a, c, d), NO_TRAP);
    TRY("mov %%cr4, %%rax", a, c, d);
    expect("CR4 after it", (i64)a, (i64)before);
    TRY("mov %%cr3, %%rax", a, c, d);
    expect("MOV to CR3 with what it is", (i64)TRY("mov %%rax, %%cr3", a, c, d), NO_TRAP);
    a = start_info->shared_info;
    expect("MOV to CR3 with what is no root", (i64)TRY("mov %%rax, %%cr3", a, c, d), PROTECTION);
}

static void test_registers(void) {
    u64 a = 0, c = 0, d = 0;
    expect_msr("EFER", 0xc0000080, 0xd01);
    expect_msr("PAT", 0x277, 0x0000050100070406);
    expect_msr("APIC_BASE", 0x1b, 0xfee00900);
    c = 0x40000001;
    expect("RDMSR of one that is not there", (i64)TRY("rdmsr", a, c, d), PROTECTION);
    c = 0x277;
    expect("WRMSR of PAT", (i64)TRY("wrmsr", a, c, d), PROTECTION);
    expect("MOV from CR0", (i64)TRY("mov %%cr0, %%rax", a, c, d), NO_TRAP);
    expect("CR0", a & 0x80000001, 0x80000001);
    expect("MOV from CR3", (i64)TRY("mov %%cr3, %%rax", a, c, d), NO_TRAP);
    expect("CR3", (i64)a, (i64)(machine_frame((void *)start_info->pt_base) * PAGE));
    expect("MOV from CR4", (i64)TRY("mov %%cr4, %%rax", a, c, d), NO_TRAP);
    expect("CR4.PAE", a >> 5 & 1, 1);
    c = 0xc0000080, a = 0xd01, d = 0;
    expect("WRMSR of EFER with what it is", (i64)TRY("wrmsr", a, c, d), NO_TRAP);
    a = 0xd00;
    expect("WRMSR of EFER with something else", (i64)TRY("wrmsr", a, c, d), PROTECTION);
    test_control_registers();
    /* CR0.TS by call and by instruction. */
    expect("fpu_taskswitch 1", hypercall(5, 1, 0, 0, 0), 0);
    TRY("mov %%cr0, %%rax", a, c, d);
    expect("CR0.TS set", a >> 3 & 1, 1);
    expect("CLTS", (i64)TRY("clts", a, c, d), NO_TRAP);
    TRY("mov %%cr0, %%rax", a, c, d);
    expect("CR0.TS clear", a >> 3 & 1, 0);
    hypercall(5, 1, 0, 0, 0);
    expect("an x87 instruction with CR0.TS", (i64)TRY("fnclex", a, c, d), NOT_AVAILABLE);
    TRY("mov %%cr0, %%rax", a, c, d);
    expect("CR0.TS in the handler, cleared for it", a >> 3 & 1, 0);
    expect("fpu_taskswitch 0", hypercall(5, 0, 0, 0, 0), 0);
}

/* What only a kernel on hardware could use is not shown (xen/include/public/arch-x86/cpufeatureset.h). */
static void test_hidden_features(void) {
    static const struct {
        u32 leaf, edx, ecx, ebx;
    } hidden[] = {
        {1, 1u << 1 | 1u << 3 | 1u << 12 | 1u << 13 | 1u << 17, 1u << 3 | 1u << 5 | 1u << 17 | 1u << 21 | 1u << 24, 0},
        {7, 0, 1u << 2 | 1u << 3 | 1u << 16, 1u << 1 | 1u << 7 | 1u << 10 | 1u << 20},
        {0x80000001, 1u << 26, 1u << 2 | 1u << 4, 0},
    };
    for (u64 n = 0; n < sizeof hidden / sizeof *hidden; n++) {
        u32 a = hidden[n].leaf, b, c = 0, d;
        asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        expect("features that are to be hidden", (d & hidden[n].edx) | (c & hidden[n].ecx) | (b & hidden[n].ebx), 0);
    }
    u32 a = 0x80000001, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    expect("SYSCALL, NX and long mode", d & (1u << 11 | 1u << 20 | 1u << 29), 1u << 11 | 1u << 20 | 1u << 29);
    a = 0x40000001, c = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    expect("the hypervisor's version, as xen_version gives it", a, hypercall(XEN_VERSION, 0, 0, 0, 0));
    a = 0x40000005, c = 0;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    expect_true("bits of a machine address", (b & 0xff) >= 36 && (b & 0xff) <= 44);
}

static void test_cpuid(void) {
    u32 a = 0x40000000, b, c = 0, d;
    /* UD2 and "xen" before CPUID: the form that cannot pass the hypervisor by. */
    asm volatile("ud2; .ascii \"xen\"; cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    expect_true("the hypervisor's leaves are at least 2", a >= 0x40000002);
    expect("the signature, XenV", b, 0x566e6558);
    expect("the signature, MMXe", c, 0x65584d4d);
    expect("the signature, nVMM", d, 0x4d4d566e);
    a = 1, c = 0;
    asm volatile("ud2; .ascii \"xen\"; cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    expect("CPUID.1:ECX, a hypervisor is there", c >> 31, 1);
    expect("CPUID.1:EDX, PSE is hidden", d >> 3 & 1, 0);
}

/* Instructions that no para-virtual kernel needs are not carried out. */
static void test_refused_instructions(void) {
    u64 a = 0, c = 0, d = 0;
    expect("HLT", (i64)TRY("hlt", a, c, d), PROTECTION);
    expect("INVLPG", (i64)TRY("invlpg (%%rsp)", a, c, d), PROTECTION);
    expect("LGDT", (i64)TRY("lgdt (%%rsp)", a, c, d), PROTECTION);
    expect("LIDT", (i64)TRY("lidt (%%rsp)", a, c, d), PROTECTION);
    expect("SWAPGS", (i64)TRY("swapgs", a, c, d), PROTECTION);
    expect("LTR", (i64)TRY("ltr %%ax", a, c, d), PROTECTION);
    expect("VMCALL", (i64)TRY("vmcall", a, c, d), UNDEFINED);
    expect("UD2", (i64)TRY("ud2", a, c, d), UNDEFINED);
    expect("WBINVD", (i64)TRY("wbinvd", a, c, d), NO_TRAP);
    u64 flags;
    asm volatile("pushf; pop %0" : "=r"(flags));
    expect("IF as PUSHF shows it", flags >> 9 & 1, 1);
}

/* The frame of an exception in kernel mode: the selector's privilege is hidden, the event flag stands beside it and, the
 * other way round, in RFLAGS.IF. */
static void test_frames(void) {
    u64 a = 0, c = 0, d = NOWHERE + 0x123;
    TRY("ud2", a, c, d);
    expect("CS in a frame, and the event flag", (i64)caught_frame.cs, 0xe030 | 1l << 32);
    expect("SS in a frame", (i64)caught_frame.ss, 0xe02b);
    expect("RFLAGS.IF in a frame while events are masked", caught_frame.rflags >> 9 & 1, 0);
    expect("a read of nowhere", (i64)TRY("mov (%%rdx), %%rax", a, c, d), 14);
    expect("its error code", (i64)caught_frame.error, 0);
    expect("its address", (i64)this_vcpu->cr2, NOWHERE + 0x123);
    expect("a write to nowhere", (i64)TRY("mov %%rax, (%%rdx)", a, c, d), 14);
    expect("its error code", (i64)caught_frame.error, 2);
}

/* A call keeps every register but RAX, RCX and R11 among them. */
static void test_kept_registers(void) {
    u64 a = XEN_VERSION, b = 2, c = 3, d = 4, first = 7, second = 6;
    register u64 r10 asm("r10") = 10;
    register u64 r11 asm("r11") = 11;
    asm volatile("syscall" : "+a"(a), "+b"(b), "+c"(c), "+d"(d), "+D"(first), "+S"(second), "+r"(r10), "+r"(r11) : : "memory");
    expect("a call", (i64)a, 4096);
    expect_true("registers after a call", b == 2 && c == 3 && d == 4 && first == 7 && second == 6 && r10 == 10 && r11 == 11);
}

/* Older kernels call a page of stubs, which they have filled by a write to this register (or by a note). */
static void test_hypercall_page(void) {
    char *page = fresh_page();
    u64 address = machine_frame(page) * PAGE;
    u64 a = (u32)address, c = 0x40000000, d = address >> 32;
    expect("WRMSR that fills a page with stubs", (i64)TRY("wrmsr", a, c, d), NO_TRAP);
    i64 (*stub)(u64, u64, u64) = (i64 (*)(u64, u64, u64))(page + XEN_VERSION * 32);
    expect("a call by its stub", stub(7, 0, 0), 4096);
    a = (u32)address + 1;
    expect("WRMSR for another page of stubs", (i64)TRY("wrmsr", a, c, d), PROTECTION);
    address = machine_frame((void *)start_info->pt_base) * PAGE;
    a = (u32)address, d = address >> 32;
    expect("WRMSR that would put stubs into a page table", (i64)TRY("wrmsr", a, c, d), PROTECTION);
}

/* Ports and CLI are a matter of the I/O privilege level that the kernel has asked for. */
static void test_io_privilege(void) {
    u64 a = 0, c = 0, d = 0x80;
    u32 level = 0;
    hypercall(PHYSDEV_OP, 6, (u64)&level, 0, 0);
    expect("CLI at level 0", (i64)TRY("cli", a, c, d), PROTECTION);
    expect("IN at level 0", (i64)TRY("inb %%dx, %%al", a, c, d), PROTECTION);
    level = 1;
    hypercall(PHYSDEV_OP, 6, (u64)&level, 0, 0);
    expect("CLI at level 1", (i64)TRY("cli", a, c, d), NO_TRAP);
    expect("STI at level 1", (i64)TRY("sti", a, c, d), NO_TRAP);
    expect("IN at level 1", (i64)TRY("inb %%dx, %%al", a, c, d), NO_TRAP);
    expect("what a port without a device reads", a & 0xff, 0xff);
    expect("OUT at level 1", (i64)TRY("outb %%al, %%dx", a, c, d), NO_TRAP);
    level = 0;
    hypercall(PHYSDEV_OP, 6, (u64)&level, 0, 0);
}

void test_processor(void) {
    test_trap_table();
    test_debug_registers();
    test_segments();
    test_descriptors();
    test_registers();
    test_cpuid();
    test_hidden_features();
    test_refused_instructions();
    test_frames();
    test_kept_registers();
    test_hypercall_page();
    test_io_privilege();
    expect("stack_switch", hypercall(STACK_SWITCH, 0xe02b, (u64)trap_stack_top, 0, 0), 0);
}
