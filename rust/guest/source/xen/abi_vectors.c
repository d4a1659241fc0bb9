/* The interface's test: the floating-point and vector state, which is the guest's own. */

#include "abi.h"

#define NOT_AVAILABLE 7

/* CR0.TS keeps vector instructions from running, whatever ran before. */
static void test_task_switched(void) {
    u64 a = 0, c = 0, d = 0;
    expect("an SSE instruction", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NO_TRAP);
    expect("fpu_taskswitch 1", hypercall(5, 1, 0, 0, 0), 0);
    expect("an SSE instruction with CR0.TS", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NOT_AVAILABLE);
    expect("the next one, behind the handler", (i64)TRY("xorps %%xmm1, %%xmm1", a, c, d), NO_TRAP);
}

void test_vectors(void) { test_task_switched(); }
