/* Setting the bare machine up, printing on the first serial port, and the order of the checks. */

#include "machine.h"

extern const uint8_t stubs[];
extern uint8_t exception_stack[];
extern struct state trapped;
void leave(const struct state *state, const struct selectors *selectors);

enum { PAGE = 0x1000, LARGE = 0x200000 };

/* Page-table entries (SDM vol. 3, 4.5). */
enum { P = 1, RW = 2, US = 4, PCD = 0x10, PS = 0x80 };

static uint64_t pml4[512] __attribute__((aligned(PAGE))), directories[512] __attribute__((aligned(PAGE)));
static uint64_t first_gib[512] __attribute__((aligned(PAGE))), last_gib[512] __attribute__((aligned(PAGE)));
static uint64_t small_pages[512] __attribute__((aligned(PAGE)));
static uint64_t gdt[GDT_LIMIT / 8 + 1] __attribute__((aligned(16)));
static uint64_t idt[512] __attribute__((aligned(16)));
static uint8_t program_room[ROOM_CODE + ROOM_DATA + ROOM_STACK + PAGE] __attribute__((aligned(PAGE)));

/* The I/O bitmap would lie behind the limit: no port is open to ring 3. */
uint8_t task_state[0x2100] __attribute__((aligned(16)));
struct table gdt_pointer, idt_pointer;
/* In the 2 MiB that the small pages map. */
uint8_t *page_under_test = (uint8_t *)0xa00000;

enum { COM1 = 0x3f8, LINE_STATUS = COM1 + 5, EMPTY = 0x20 };

void put_text(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        while (!(in8(LINE_STATUS) & EMPTY)) {
        }
        out8(COM1, (uint8_t)text[i]);
    }
}

void crashed(const uint64_t *frame)
{
    print("\ndetection: the program itself crashed: vector %llu, error %llx, rip %llx, address %llx\n",
          (unsigned long long)frame[0], (unsigned long long)frame[1], (unsigned long long)frame[2],
          (unsigned long long)read_cr(2));
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

/* A segment descriptor (SDM vol. 3, 3.4.5): `access` is the byte, `flags` are G, D/B, L and AVL. */
static uint64_t descriptor(uint32_t base, uint32_t limit, uint8_t access, uint8_t flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 15) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

static void descriptor_tables(void)
{
    uint32_t data = (uint32_t)(uintptr_t)room.data, code = (uint32_t)(uintptr_t)room.code;
    uint64_t task = (uintptr_t)task_state;
    gdt[CODE64_0 / 8] = descriptor(0, 0xfffff, 0x9b, 0xa);
    gdt[DATA_0 / 8] = descriptor(0, 0xfffff, 0x93, 0xc);
    gdt[CODE32_0 / 8] = descriptor(0, 0xfffff, 0x9b, 0xc);
    gdt[CODE32_3 / 8] = descriptor(0, 0xfffff, 0xfb, 0xc);
    gdt[DATA_3 / 8] = descriptor(0, 0xfffff, 0xf3, 0xc);
    gdt[CODE64_3 / 8] = descriptor(0, 0xfffff, 0xfb, 0xa);
    gdt[TASK / 8] = descriptor((uint32_t)task, TASK_LIMIT, 0x89, 0);
    gdt[TASK / 8 + 1] = task >> 32;
    gdt[SMALL_3 / 8] = descriptor(data, 0xfff, 0xf3, 0x4);
    gdt[DOWN_3 / 8] = descriptor(data - 0x1000, 0xfff, 0xf7, 0x0);
    gdt[SHORT_3 / 8] = descriptor(code, 15, 0xfb, 0x4);
    gdt[ABSENT_3 / 8] = descriptor(0, 0xfffff, 0x73, 0xc);
    gdt[READ_ONLY_3 / 8] = descriptor(0, 0xfffff, 0xf1, 0xc);
    uint64_t target = code + 0x100;
    gdt[GATE_3 / 8] = (target & 0xffff) | (uint64_t)CODE64_0 << 16 | 0xecull << 40 | (target >> 16 & 0xffff) << 48;
    gdt_pointer = (struct table){GDT_LIMIT, (uintptr_t)gdt};
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t stub = (uintptr_t)stubs + 16 * vector;
        bool open = vector == BP || vector == OF || vector == 0x80;
        uint64_t gate = open ? 0xee : 0x8e;
        /* An interrupt gate on the first stack of the interrupt stack table. */
        idt[2 * vector] = (stub & 0xffff) | (uint64_t)CODE64_0 << 16 | 1ull << 32 | gate << 40 | (stub >> 16 & 0xffff) << 48;
        idt[2 * vector + 1] = stub >> 32;
    }
    idt_pointer = (struct table){sizeof idt - 1, (uintptr_t)idt};
    uint64_t inner = (uintptr_t)program_room + sizeof program_room, stack = (uintptr_t)exception_stack;
    copy(task_state + 0x04, &inner, 8);
    copy(task_state + 0x24, &stack, 8);
    uint16_t bitmap = sizeof task_state - 1;
    copy(task_state + 0x66, &bitmap, 2);
    __asm__ volatile("lgdt %0; lidt %1; ltr %w2" : : "m"(gdt_pointer), "m"(idt_pointer), "r"(TASK));
    __asm__ volatile("push %0; lea 1f(%%rip), %%rax; push %%rax; lretq; 1: mov %1, %%ds; mov %1, %%es; mov %1, %%ss; "
                     "mov %2, %%fs; mov %2, %%gs; xor %%eax, %%eax; lldt %%ax"
                     : : "i"(CODE64_0), "r"(DATA_0), "r"(0) : "rax", "memory");
}

/* The first GiB open to ring 3, the last of 4 GiB (interrupt controllers) not. */
static void paging(void)
{
    pml4[0] = (uintptr_t)directories | P | RW | US;
    directories[0] = (uintptr_t)first_gib | P | RW | US;
    directories[3] = (uintptr_t)last_gib | P | RW;
    for (uint64_t i = 0; i < 512; i++) {
        first_gib[i] = i * LARGE | P | RW | US | PS;
        last_gib[i] = (0xc0000000 + i * LARGE) | P | RW | PCD | PS;
        uint64_t page = ((uintptr_t)page_under_test & ~(uint64_t)(LARGE - 1)) + i * PAGE;
        small_pages[i] = page | P | RW | US;
    }
    first_gib[(uintptr_t)page_under_test / LARGE] = (uintptr_t)small_pages | P | RW | US;
    __asm__ volatile("mov %0, %%cr3" : : "r"(pml4) : "memory");
}

uint64_t *entry_under_test(void)
{
    return &small_pages[(uintptr_t)page_under_test / PAGE % 512];
}

static void control_registers(void)
{
    /* PE, MP, ET, NE, WP, AM, PG; PAE, DE, OSFXSR, OSXMMEXCPT, and what CPUID offers of FSGSBASE and OSXSAVE. */
    uint64_t cr4 = 1 << 5 | 1 << 3 | 1 << 9 | 1 << 10;
    cr4 |= has_feature(FEATURE(7, 0, EBX, 0)) ? 1 << 16 : 0;
    cr4 |= has_feature(FEATURE(1, 0, ECX, 26)) ? 1 << 18 : 0;
    __asm__ volatile("mov %0, %%cr0; mov %1, %%cr4; fninit" : : "r"(0x80050033ull), "r"(cr4));
    if (cr4 & 1 << 18) {
        __asm__ volatile("xsetbv" : : "a"(3), "d"(0), "c"(0));
    }
    /* SCE and NXE. */
    write_msr(0xc0000080, msr(0xc0000080) | 1 | 1 << 11);
}

bool offers(enum mode mode)
{
    return mode < MODES;
}

void execute_with(const struct selectors *selectors, struct state *state)
{
    leave(state, selectors);
    copy(state, &trapped, 19 * 8 + 8);
    state->address = read_cr(2);
}

void execute(enum mode mode, struct state *state)
{
    static const struct selectors selectors[MODES] = {
        {CODE64_0, DATA_0}, {CODE32_0, DATA_0}, {CODE64_3, DATA_3}, {CODE32_3, DATA_3}};
    execute_with(&selectors[mode], state);
}

void start(void)
{
    room = (struct room){.code = program_room, .data = program_room + ROOM_CODE,
                         .stack = program_room + sizeof program_room - PAGE};
    paging();
    descriptor_tables();
    /* No interrupt but what the checks ask for. */
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    control_registers();
    print("\n");
    check_cpuid();
    check_msrs();
    check_control_registers();
    check_debug_registers();
    check_segments();
    check_paging();
    check_opcodes();
    check_flags();
    check_fpu();
    check_ports();
    check_pci();
    check_tables();
    summary();
}
