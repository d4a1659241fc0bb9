/* x87, MMX and SSE state: values after initialisation, the environment image, the pointers to the last instruction. */

#include "detect.h"

/* The protected-mode image of 32 bits (SDM vol. 1, figure 8-9). */
struct environment {
    uint16_t control, ones0, status, ones1, tags, ones2;
    uint32_t ip;
    uint16_t cs, opcode;
    uint32_t dp;
    uint16_t ds, ones3;
};

SNIPPET(initial_64, 64, "fninit; fnstenv [rbx]");
SNIPPET(initial_32, 32, "fninit; fnstenv [ebx]");
/* FLD of a number: the pointers are those of the FLD. */
SNIPPET(load_64, 64, "fninit; fld dword ptr [rsi]; fnstenv [rbx]; fninit");
SNIPPET(load_32, 32, "fninit; fld dword ptr [esi]; fnstenv [ebx]; fninit");
/* An unmasked invalid operation: FLD of a signalling NaN. The image is taken before anything reports the exception. */
SNIPPET(invalid_64, 64, "fninit; mov word ptr [rbx+64], 0x37e; fldcw [rbx+64]; fld dword ptr [rsi+4]; fnstenv [rbx]; fninit");
SNIPPET(invalid_32, 32, "fninit; mov word ptr [ebx+64], 0x37e; fldcw [ebx+64]; fld dword ptr [esi+4]; fnstenv [ebx]; fninit");
/* The exception itself comes with the next waiting instruction. */
SNIPPET(report_64, 64, "fninit; mov word ptr [rbx+64], 0x37e; fldcw [rbx+64]; fld dword ptr [rsi+4]; nop; fld1; nop");
SNIPPET(report_32, 32, "fninit; mov word ptr [ebx+64], 0x37e; fldcw [ebx+64]; fld dword ptr [esi+4]; nop; fld1; nop");
/* SSE: 0/0 with the invalid operation unmasked. */
SNIPPET(simd_64, 64, "mov dword ptr [rbx], 0x1f00; ldmxcsr [rbx]; xorps xmm0, xmm0; divss xmm0, xmm0; nop");
SNIPPET(simd_32, 32, "mov dword ptr [ebx], 0x1f00; ldmxcsr [ebx]; xorps xmm0, xmm0; divss xmm0, xmm0; nop");

static struct environment *image(void)
{
    return (struct environment *)(void *)room.data;
}

static struct state prepared(void)
{
    struct state state = fresh_state();
    fill(room.data, 0, 0x1000);
    uint32_t *numbers = (uint32_t *)(uintptr_t)state.gpr[RSI];
    numbers[0] = 0x3fc00000;
    numbers[1] = 0x7f800001;
    return state;
}

static void detail_environment(void)
{
    const struct environment *e = image();
    detail("control %x status %x tags %x ip %x cs %x opcode %x dp %x ds %x", e->control, e->status, e->tags, e->ip, e->cs,
           e->opcode, e->dp, e->ds);
}

static void environments(enum mode mode)
{
    const char *name = mode_names[mode];
    bool no_selectors = has_feature(FEATURE(7, 0, EBX, 13)), only_exceptions = has_feature(FEATURE(7, 0, EBX, 6));
    struct state state = prepared();
    is_64(mode) ? RUN(mode, &state, initial_64) : RUN(mode, &state, initial_32);
    const struct environment *e = image();
    check(e->control == 0x37f && e->status == 0 && e->tags == 0xffff, "x87 words after fninit (%s)", name);
    detail_environment();
    check(e->ones0 == 0xffff && e->ones1 == 0xffff && e->ones2 == 0xffff && e->ones3 == 0xffff,
          "reserved words of the x87 image (%s)", name);
    check(e->ip == 0 && e->cs == 0 && e->opcode == 0 && e->dp == 0 && e->ds == 0, "x87 pointers after fninit (%s)", name);
    detail_environment();

    state = prepared();
    uint32_t operand = (uint32_t)state.gpr[RSI];
    is_64(mode) ? RUN(mode, &state, load_64) : RUN(mode, &state, load_32);
    check(e->ip == (uint32_t)(uintptr_t)room.code + 2, "x87 instruction pointer (%s)", name);
    detail_environment();
    check(e->dp == (only_exceptions ? 0 : operand), "x87 data pointer (%s)", name);
    detail_environment();
    check(e->opcode == 0 && (!no_selectors || (e->cs == 0 && e->ds == 0)), "x87 opcode and selectors (%s)", name);
    detail_environment();

    state = prepared();
    is_64(mode) ? RUN(mode, &state, invalid_64) : RUN(mode, &state, invalid_32);
    long at = (is_64(mode) ? invalid_64_end - invalid_64_start : invalid_32_end - invalid_32_start) - 2 - 2 - 3;
    check(e->ip == (uint32_t)(uintptr_t)room.code + (uint32_t)at, "x87 instruction pointer after an exception (%s)", name);
    detail_environment();
    check(e->dp == operand + 4, "x87 data pointer after an exception (%s)", name);
    detail_environment();
    /* D9 46 04: the low three bits of the first byte above the second byte. */
    check(e->opcode == 0x146, "x87 opcode after an exception (%s)", name);
    detail_environment();
    check((e->status & 0x80ff) == 0x8081, "x87 status after an exception (%s)", name);
    detail_environment();

    state = prepared();
    is_64(mode) ? RUN(mode, &state, report_64) : RUN(mode, &state, report_32);
    long due = (is_64(mode) ? report_64_end - report_64_start : report_32_end - report_32_start) - 3;
    check(state.vector == MF && ended_at(&state) == due, "#MF comes with the next x87 instruction (%s)", name);
    detail_state(&state);
    static const char clean[] = "\xdb\xe3";
    run(mode, &state, clean, sizeof clean - 1);

    state = prepared();
    is_64(mode) ? RUN(mode, &state, simd_64) : RUN(mode, &state, simd_32);
    due = (is_64(mode) ? simd_64_end - simd_64_start : simd_32_end - simd_32_start) - 5;
    check(state.vector == XM && ended_at(&state) == due, "#XM at its instruction (%s)", name);
    detail_state(&state);
    state = fresh_state();
    static const char mask[] = "\xc7\x03\x80\x1f\x00\x00\x0f\xae\x13";
    run(mode, &state, mask, sizeof mask - 1);
}

SNIPPET(fxsave_64, 64, "fninit; fxsave [rbx]");

static void fxsave_image(enum mode mode)
{
    struct state state = fresh_state();
    fill(room.data, 0xa5, 0x400);
    RUN(mode, &state, fxsave_64);
    uint16_t *words = (uint16_t *)(void *)room.data;
    check(words[0] == 0x37f && words[1] == 0 && room.data[4] == 0 && room.data[5] == 0, "fxsave image after fninit");
    uint32_t mask = *(uint32_t *)(void *)(room.data + 28);
    check(mask == 0xffff, "MXCSR_MASK of fxsave");
    detail("%x", mask);
    bool kept = true;
    for (unsigned at = 464; at < 0x400; at++) {
        kept = kept && room.data[at] == 0xa5;
    }
    check(kept, "fxsave leaves software's bytes alone");
}

void check_fpu(void)
{
    for (enum mode mode = 0; mode < MODES; mode++) {
        if (offers(mode)) {
            environments(mode);
        }
    }
    fxsave_image(offers(RING0_64) ? RING0_64 : RING3_64);
}
