/* The interface's test: the floating-point and vector state, which is the guest's own. What there is of it is chosen by CR4
 * and XCR0, and both writes are carried out by the hypervisor (xen/arch/x86/pv/emul-priv-op.c, xen/arch/x86/cpuid.c). */

#include "abi.h"

#define UNDEFINED 6
#define NOT_AVAILABLE 7
#define PROTECTION 13

#define XSAVE_OFFERED (1u << 26)
#define OSXSAVE (1u << 27)
#define CR4_OSXSAVE (1ul << 18)
#define X87 1ul
#define SSE 2ul
#define AVX 4ul

struct cpuid {
    u32 a, b, c, d;
};

static struct cpuid cpuid(u32 leaf, u32 subleaf) {
    struct cpuid is;
    asm volatile("cpuid" : "=a"(is.a), "=b"(is.b), "=c"(is.c), "=d"(is.d) : "a"(leaf), "c"(subleaf));
    return is;
}

/* As the kernel asks the hypervisor. */
static struct cpuid forced_cpuid(u32 leaf, u32 subleaf) {
    struct cpuid is;
    asm volatile("ud2; .ascii \"xen\"; cpuid" : "=a"(is.a), "=b"(is.b), "=c"(is.c), "=d"(is.d) : "a"(leaf), "c"(subleaf));
    return is;
}

static u64 read_cr4(void) {
    u64 a = 0, c = 0, d = 0;
    expect("MOV from CR4", (i64)TRY("mov %%cr4, %%rax", a, c, d), NO_TRAP);
    return a;
}

static void write_cr4(u64 a) {
    u64 c = 0, d = 0;
    expect("MOV to CR4", (i64)TRY("mov %%rax, %%cr4", a, c, d), NO_TRAP);
}

static i64 set_xcr(u64 number, u64 value) {
    u64 a = (u32)value, c = number, d = value >> 32;
    return (i64)TRY("xsetbv", a, c, d);
}

static u64 xcr0(void) {
    u64 a = 0, c = 0, d = 0;
    expect("XGETBV", (i64)TRY("xgetbv", a, c, d), NO_TRAP);
    return d << 32 | a;
}

/* CR0.TS keeps vector instructions from running, whatever ran before. */
static void test_task_switched(void) {
    u64 a = 0, c = 0, d = 0;
    expect("an SSE instruction", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NO_TRAP);
    expect("fpu_taskswitch 1", hypercall(5, 1, 0, 0, 0), 0);
    expect("an SSE instruction with CR0.TS", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NOT_AVAILABLE);
    expect("the next one, behind the handler", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NO_TRAP);
}

static void test_xcr0(u64 offered) {
    expect("XCR0 as it is at first", (i64)xcr0(), X87 | SSE);
    expect("bytes of the state that is enabled", cpuid(0xd, 0).b, 576);
    expect("XSETBV of XCR0 with all that is offered", set_xcr(0, offered), NO_TRAP);
    expect("XCR0", (i64)xcr0(), (i64)offered);
    struct cpuid size = cpuid(0xd, 0);
    expect("bytes of all state that is offered", size.b, size.c);
    expect("XSETBV of XCR0 without x87", set_xcr(0, SSE), PROTECTION);
    expect("its error code", (i64)caught_frame.error, 0);
    expect("XSETBV of XCR0 with 0", set_xcr(0, 0), PROTECTION);
    expect("XSETBV of XCR0 with AVX and without SSE", set_xcr(0, X87 | AVX), PROTECTION);
    expect("XSETBV of XCR0 with PKRU", set_xcr(0, offered | 1ul << 9), PROTECTION);
    expect("XSETBV of XCR0 with bit 63", set_xcr(0, offered | 1ul << 63), PROTECTION);
    expect("XSETBV of XCR1", set_xcr(1, offered), PROTECTION);
    expect("XCR0 after what was refused", (i64)xcr0(), (i64)offered);
}

/* The kernel saves and restores without privilege. */
static void test_save(u64 offered) {
    char *area = fresh_page();
    u64 a = offered, c = (u64)area, d = 0;
    expect("XSAVE", (i64)TRY("xsave64 (%%rcx)", a, c, d), NO_TRAP);
    expect("XRSTOR", (i64)TRY("xrstor64 (%%rcx)", a, c, d), NO_TRAP);
    c++;
    expect("XSAVE that is not aligned", (i64)TRY("xsave64 (%%rcx)", a, c, d), PROTECTION);
    c--;
    area[512 + 1] = 2;
    expect("XRSTOR of a component that there is not", (i64)TRY("xrstor64 (%%rcx)", a, c, d), PROTECTION);
    expect("CPUID, XSAVES is hidden", cpuid(0xd, 1).a >> 3 & 1, 0);
    expect("XSAVES", (i64)TRY("xsaves64 (%%rcx)", a, c, d), UNDEFINED);
    expect("XRSTORS", (i64)TRY("xrstors64 (%%rcx)", a, c, d), UNDEFINED);
}

/* Upper halves of registers live through calls and exceptions, and are there only while XCR0 says so. */
static void test_upper_halves(u64 offered) {
    u64 *out = fresh_page();
    u64 *in = out + 8;
    for (u64 n = 0; n < 4; n++)
        in[n] = 0x1111111111111111 * (n + 1);
    u64 a = 0, c = (u64)in, d = (u64)out;
    expect("a load of 32 bytes", (i64)TRY("vmovups (%%rcx), %%ymm1", a, c, d), NO_TRAP);
    hypercall(XEN_VERSION, 0, 0, 0, 0);
    TRY("ud2", a, c, d);
    expect("a store of 32 bytes", (i64)TRY("vmovups %%ymm1, (%%rdx)", a, c, d), NO_TRAP);
    for (u64 n = 0; n < 4; n++)
        expect("a quarter of what was stored", (i64)out[n], (i64)in[n]);
    expect("XSETBV of XCR0 without AVX", set_xcr(0, X87 | SSE), NO_TRAP);
    expect("AVX without it in XCR0", (i64)TRY("vmovups %%ymm1, (%%rdx)", a, c, d), UNDEFINED);
    expect("SSE meanwhile", (i64)TRY("movups %%xmm1, (%%rdx)", a, c, d), NO_TRAP);
    expect("XSETBV of XCR0 with AVX again", set_xcr(0, offered), NO_TRAP);
    expect("AVX then", (i64)TRY("vmovups %%ymm1, (%%rdx)", a, c, d), NO_TRAP);
    hypercall(5, 1, 0, 0, 0);
    expect("AVX with CR0.TS", (i64)TRY("vmovups %%ymm1, (%%rdx)", a, c, d), NOT_AVAILABLE);
    expect("VZEROUPPER", (i64)TRY("vzeroupper", a, c, d), NO_TRAP);
}

void test_vectors(void) {
    test_task_switched();
    u64 before = read_cr4();
    expect("CR4.OSXSAVE at first", (i64)(before & CR4_OSXSAVE), 0);
    expect("XSETBV without CR4.OSXSAVE", set_xcr(0, X87), UNDEFINED);
    /* Where Xen itself has set it the processor executes this one. */
    u64 a = 0, c = 0, d = 0;
    expect_either("XGETBV without CR4.OSXSAVE", (i64)TRY("xgetbv", a, c, d), UNDEFINED, NO_TRAP);
    if (!(cpuid(1, 0).c & XSAVE_OFFERED)) {
        expect("CPUID of the kernel's, OSXSAVE without XSAVE", forced_cpuid(1, 0).c & OSXSAVE, 0);
        write_cr4(before | CR4_OSXSAVE);
        expect("CR4.OSXSAVE without XSAVE", (i64)(read_cr4() & CR4_OSXSAVE), 0);
        return;
    }
    /* The hypervisor's own CR4 shows in what it tells the kernel; Linux does without XSAVE if it does not. */
    expect("CPUID of the kernel's, OSXSAVE before it is set", forced_cpuid(1, 0).c & OSXSAVE, OSXSAVE);
    write_cr4(before | CR4_OSXSAVE);
    expect("CR4 with OSXSAVE", (i64)read_cr4(), (i64)(before | CR4_OSXSAVE));
    expect("CPUID, OSXSAVE after it", cpuid(1, 0).c & OSXSAVE, OSXSAVE);
    u64 offered = cpuid(0xd, 0).a;
    expect("x87 and SSE state", offered & (X87 | SSE), X87 | SSE);
    test_xcr0(offered);
    test_save(offered);
    if (offered & AVX)
        test_upper_halves(offered);
    expect("XSETBV back", set_xcr(0, X87 | SSE), NO_TRAP);
    write_cr4(before);
    expect("CR4 back", (i64)read_cr4(), (i64)before);
}
