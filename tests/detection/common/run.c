/* Running a piece of code and saying how it ended. */

#include "detect.h"

struct room room;

const char *const mode_names[MODES] = {"ring 0, 64-bit", "ring 0, 32-bit", "ring 3, 64-bit", "ring 3, 32-bit"};

struct state fresh_state(void)
{
    struct state state;
    fill(&state, 0, sizeof state);
    state.gpr[RBX] = (uintptr_t)room.data;
    state.gpr[RSI] = (uintptr_t)room.data + 0x400;
    state.gpr[RDI] = (uintptr_t)room.data + 0x800;
    /* Zeros above the top, for what code may pop. */
    state.gpr[RSP] = (uintptr_t)room.stack - 0x200;
    fill(room.stack - 0x200, 0, 0x200);
    state.rflags = 2;
    return state;
}

void run(enum mode mode, struct state *state, const void *code, size_t length)
{
    static const uint8_t ud2[2] = {0x0f, 0x0b};
    copy(room.code, code, length);
    copy(room.code + length, ud2, sizeof ud2);
    state->rip = (uintptr_t)room.code;
    execute(mode, state);
    if (state->vector == UD && ended_at(state) == (long)length) {
        state->vector = DONE;
    }
}

void detail_state(const struct state *state)
{
    if (state->vector == DONE) {
        detail("no exception");
    } else {
        detail("vector %u, error %llx, at offset %lld", (unsigned)state->vector, (unsigned long long)state->error,
               (long long)ended_at(state));
    }
}
