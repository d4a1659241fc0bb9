/* Reading and writing MSRs, control and debug registers, with whatever exception that raises. */

#include "machine.h"

static unsigned ended(struct state *state, uint64_t *value)
{
    if (value != NULL) {
        *value = (uint32_t)state->gpr[RAX] | state->gpr[RDX] << 32;
    }
    /* Every one of these can raise #GP(0) and #UD only; an error code would be a finding of its own. */
    return (unsigned)(state->error != 0 && state->vector == GP ? 0xff : state->vector);
}

unsigned read_msr(uint32_t number, uint64_t *value)
{
    struct state state = fresh_state();
    state.gpr[RCX] = number;
    run(RING0_64, &state, "\x0f\x32", 2);
    return ended(&state, value);
}

unsigned write_msr(uint32_t number, uint64_t value)
{
    struct state state = fresh_state();
    state.gpr[RCX] = number;
    state.gpr[RAX] = (uint32_t)value;
    state.gpr[RDX] = value >> 32;
    run(RING0_64, &state, "\x0f\x30", 2);
    return ended(&state, NULL);
}

uint64_t msr(uint32_t number)
{
    uint64_t value = 0;
    return read_msr(number, &value) == DONE ? value : ~0ull;
}

/* MOV between RAX and register `number`; CR8 needs REX.R. */
static unsigned move(uint8_t opcode, unsigned number, uint64_t *value)
{
    const uint8_t code[] = {(uint8_t)(number < 8 ? 0x40 : 0x44), 0x0f, opcode, (uint8_t)(0xc0 | (number & 7) << 3)};
    struct state state = fresh_state();
    state.gpr[RAX] = *value;
    run(RING0_64, &state, code, sizeof code);
    *value = state.gpr[RAX];
    return ended(&state, NULL);
}

unsigned write_cr(unsigned number, uint64_t value) { return move(0x22, number, &value); }
unsigned write_dr(unsigned number, uint64_t value) { return move(0x23, number, &value); }

uint64_t read_dr(unsigned number)
{
    uint64_t value = 0;
    move(0x21, number, &value);
    return value;
}

uint64_t read_cr(unsigned number)
{
    uint64_t value = 0;
    switch (number) {
    case 0: __asm__ volatile("mov %%cr0, %0" : "=r"(value)); break;
    case 2: __asm__ volatile("mov %%cr2, %0" : "=r"(value)); break;
    case 3: __asm__ volatile("mov %%cr3, %0" : "=r"(value)); break;
    case 4: __asm__ volatile("mov %%cr4, %0" : "=r"(value)); break;
    default: __asm__ volatile("mov %%cr8, %0" : "=r"(value)); break;
    }
    return value;
}
