/* Looks for signs of a virtual machine from inside a Linux guest, as root: in CPUID, descriptor tables, faults, flags,
 * ports, PCI, ACPI and SMBIOS. Prints a line for each sign looked for; the exit status is the number found. */

#define _GNU_SOURCE
#include <cpuid.h>
#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ucontext.h>
#include <unistd.h>

static int found;

static void check(const char *what, int sign, const char *detail)
{
    printf("%s %s%s%s\n", sign ? "SIGN" : "ok", what, *detail ? ": " : "", detail);
    found += sign != 0;
}

/* Names that only virtual machines carry, in lower case. */
static const char *const names[] = {
    "qemu", "bochs", "bxpc", "kvm", "vmware", "virtualbox", "vbox", "innotek", "xen", "parallels", "hyper-v", "vrtual",
    "virtual machine", "virtual platform", "bhyve", "tcg", "trapgate", "emulat", "seabios", "firecracker", "openstack",
    "hvisor", "virtio", "red hat", "hypervisor",
};

static const char *named(const char *text, size_t length)
{
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        size_t size = strlen(names[n]);
        for (size_t at = 0; at + size <= length; at++)
            if (strncasecmp(text + at, names[n], size) == 0)
                return names[n];
    }
    return "";
}

/* --- faults --- */

static sigjmp_buf back;
static volatile uintptr_t trap_rip;

static void on_fault(int number)
{
    siglongjmp(back, number);
}

static void on_trap(int number, siginfo_t *info, void *context)
{
    ucontext_t *state = context;
    (void)number;
    (void)info;
    if (!trap_rip)
        trap_rip = state->uc_mcontext.gregs[REG_RIP];
    state->uc_mcontext.gregs[REG_EFL] &= ~0x100;
}

/* The signal that `code` ends in, or 0 if it returns. */
static int signal_of(void (*code)(void))
{
    int number = sigsetjmp(back, 1);
    if (number == 0) {
        code();
        return 0;
    }
    return number;
}

static void run_vmcall(void) { __asm__ volatile("vmcall" ::: "memory"); }
static void run_vmmcall(void) { __asm__ volatile("vmmcall" ::: "memory"); }
static void run_virtualpc(void) { __asm__ volatile(".byte 0x0f, 0x3f, 0x07, 0x0b"); }
static void run_f00f(void) { __asm__ volatile(".byte 0xf0, 0x0f, 0xc7, 0xc8"); }
static void run_lock_nop(void) { __asm__ volatile(".byte 0xf0, 0x90"); }
static void run_icebp_long(void) { __asm__ volatile(".fill 15, 1, 0x66; nop"); }
static void run_hlt(void) { __asm__ volatile("hlt"); }
static void run_rdmsr(void) { __asm__ volatile("rdmsr" :: "c"(0x40000000) : "eax", "edx"); }
static void run_noncanonical(void) { (void)*(volatile char *)0x8000000000000000ull; }

static void faults(void)
{
    static const struct { const char *what; void (*code)(void); int expected; } cases[] = {
        {"VMCALL is undefined", run_vmcall, SIGILL},
        {"VMMCALL is undefined", run_vmmcall, SIGILL},
        {"0F 3F is undefined", run_virtualpc, SIGILL},
        {"LOCK CMPXCHG8B of a register is undefined", run_f00f, SIGILL},
        {"LOCK NOP is undefined", run_lock_nop, SIGILL},
        {"an instruction of 16 bytes is a fault", run_icebp_long, SIGSEGV},
        {"HLT is privileged", run_hlt, SIGSEGV},
        {"RDMSR is privileged", run_rdmsr, SIGSEGV},
        {"a non-canonical address is a fault", run_noncanonical, SIGSEGV},
    };
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++)
        check(cases[n].what, signal_of(cases[n].code) != cases[n].expected, "");
}

/* --- processor --- */

static void processor(void)
{
    uint32_t a, b, c, d, highest, e[4], f[4];
    char text[64] = "";
    __cpuid(0, highest, b, c, d);
    memcpy(text, &b, 4), memcpy(text + 4, &d, 4), memcpy(text + 8, &c, 4);
    check("vendor", *named(text, 12) != 0 || strcmp(text, "GenuineIntel") != 0, text);
    __cpuid(1, a, b, c, d);
    check("CPUID.1:ECX[31], hypervisor", c >> 31, "");
    for (uint32_t n = 0; n < 3; n++)
        __cpuid(0x80000002 + n, *(uint32_t *)(text + 16 * n), *(uint32_t *)(text + 16 * n + 4),
                *(uint32_t *)(text + 16 * n + 8), *(uint32_t *)(text + 16 * n + 12));
    check("brand", *named(text, 48) != 0, named(text, 48));
    /* A leaf that is not there gives what the highest basic one does (Intel SDM vol. 2, CPUID). */
    __cpuid_count(highest, 0, e[0], e[1], e[2], e[3]);
    for (uint32_t leaf = 0x40000000; leaf < 0x40000200; leaf += 0x100) {
        __cpuid_count(leaf, 0, f[0], f[1], f[2], f[3]);
        check("CPUID leaf of a hypervisor", memcmp(e, f, sizeof e) != 0, "");
    }
    /* A trap after CPUID must come before the next instruction, also where CPUID leaves the guest. */
    uintptr_t after;
    trap_rip = 0;
    __asm__ volatile("lea 1f(%%rip), %0\n pushfq\n orl $0x100, (%%rsp)\n popfq\n cpuid\n1: nop\n nop\n"
                     : "=&r"(after) : "a"(0) : "rbx", "rcx", "rdx", "memory", "cc");
    check("single-step behind CPUID", trap_rip != after, "");
}

static void tables(void)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) idt = {0}, gdt = {0};
    uint16_t ldt = 0, tr = 0;
    uint64_t msw = 0, limit = 0, rights = 0;
    __asm__ volatile("sidt %0\n sgdt %1\n sldt %2\n str %3\n smsw %4\n"
                     : "=m"(idt), "=m"(gdt), "=m"(ldt), "=m"(tr), "=r"(msw));
    check("IDT in the kernel's half", idt.base >> 47 != 0x1ffff || idt.limit != 0xfff, "");
    check("GDT in the kernel's half", gdt.base >> 47 != 0x1ffff || gdt.limit != 0x7f, "");
    check("no LDT", ldt != 0, "");
    check("TR as Linux sets it", tr != 0x40, "");
    check("MSW as CR0 has it", (msw & 0x8000003f) != 0x80000033, "");
    __asm__ volatile("lsl %1, %0" : "=r"(limit) : "r"((uint64_t)0x2b));
    check("limit of the user's data segment", limit != 0xffffffff, "");
    __asm__ volatile("lar %1, %0" : "=r"(rights) : "r"((uint64_t)0x33));
    check("rights of the user's code segment", (rights & 0xf0ff00) != 0xa0fb00, "");
}

static void x87(void)
{
    struct { uint32_t control, status, tags, ip, cs_op, dp, ds; } saved = {0};
    uintptr_t at;
    double one = 1;
    uint32_t a, b, c, d;
    __asm__ volatile("fninit\n lea 1f(%%rip), %1\n1: fldl %2\n fnstenv %0\n fninit"
                     : "=m"(saved), "=&r"(at) : "m"(one));
    check("x87 remembers its instruction", saved.ip != (uint32_t)at, "");
    /* Processors that say so in CPUID.7:EBX[6] keep the operand's address for unmasked exceptions only. */
    __cpuid_count(7, 0, a, b, c, d);
    check("x87 remembers its operand", !(b & 64) && saved.dp != (uint32_t)(uintptr_t)&one, "");
}

/* --- ports and PCI --- */

static void ports(void)
{
    uint32_t a = 0x564d5868, b = 0, c = 10, d = 0x5658;
    if (iopl(3) != 0) {
        check("I/O ports cannot be looked at", 1, "");
        return;
    }
    __asm__ volatile("inl %%dx, %%eax" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
    check("VMware's port 5658h", b == 0x564d5868 || a != 0xffffffff, "");
    check("debug console at port E9h", inb(0xe9) == 0xe9, "");
    check("debug exit at port F4h", inb(0xf4) != 0xff, "");
    check("Bochs VBE at port 1CEh", inw(0x1ce) != 0xffff || inw(0x1cf) != 0xffff, "");
    outw(0, 0x510);
    check("fw_cfg at port 510h", inb(0x511) == 'Q', "");
    check("port 505h", inb(0x505) != 0xff, "");
}

static void pci(void)
{
    static const uint16_t makers[] = {0x1af4, 0x1b36, 0x1234, 0x80ee, 0x15ad, 0x5853, 0x1414, 0x1ab8, 0xfffd};
    for (uint32_t where = 0; where < 256 * 8; where++) {
        uint32_t words[2];
        for (int n = 0; n < 2; n++) {
            outl(0x80000000u | where << 8 | (n ? 0x2c : 0), 0xcf8);
            words[n] = inl(0xcfc);
        }
        if (words[0] == 0xffffffff)
            continue;
        int sign = 0;
        for (size_t n = 0; n < sizeof makers / sizeof *makers; n++)
            sign |= (words[0] & 0xffff) == makers[n] || (words[1] & 0xffff) == makers[n];
        char text[64];
        snprintf(text, sizeof text, "%02x.%x %08x %08x", where >> 3, where & 7, words[0], words[1]);
        check("PCI device", sign, text);
    }
}

/* --- firmware and what Linux says --- */

static void file(const char *name)
{
    static char text[1 << 20];
    FILE *stream = fopen(name, "r");
    if (!stream)
        return;
    size_t length = fread(text, 1, sizeof text, stream);
    fclose(stream);
    const char *sign = named(text, length);
    char line[600];
    snprintf(line, sizeof line, "%s%s%s", name, *sign ? " has " : "", sign);
    check("file", *sign != 0, line);
}

static void folder(const char *name)
{
    DIR *entries = opendir(name);
    struct dirent *entry;
    while (entries && (entry = readdir(entries))) {
        char path[512];
        snprintf(path, sizeof path, "%s/%s", name, entry->d_name);
        if (entry->d_type == DT_REG)
            file(path);
    }
    if (entries)
        closedir(entries);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    struct sigaction trap = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &fault, NULL);
    sigaction(SIGSEGV, &fault, NULL);
    sigaction(SIGBUS, &fault, NULL);
    sigaction(SIGTRAP, &trap, NULL);
    faults();
    processor();
    tables();
    x87();
    ports();
    pci();
    folder("/sys/firmware/acpi/tables");
    folder("/sys/firmware/dmi/tables");
    folder("/sys/class/dmi/id");
    file("/proc/cpuinfo");
    file("/proc/iomem");
    file("/proc/ioports");
    file("/proc/interrupts");
    check("/sys/hypervisor", access("/sys/hypervisor/type", F_OK) == 0, "");
    check("/proc/xen", access("/proc/xen", F_OK) == 0, "");
    printf("signs found: %d\n", found);
    return found;
}
