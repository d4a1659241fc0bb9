/* The interface's test: NMIs, which a vCPU is sent by a call. Their handler is an entry of the trap table, by whatever call it
 * is set; while one is handled the next one waits, until any return by iret (xen/arch/x86/pv/traps.c, callback.c, iret.c). */

#include "abi.h"

extern char nmi_entry[];

static u64 taken, depth, deepest;
/* What the handler does besides counting. */
static enum { ONLY_COUNT, SEND_ANOTHER, RETURN_MEANWHILE, LOOK_FOR_EVENTS } job;
static bool event_waited;

static i64 send_nmi(u64 vcpu, u64 argument) { return hypercall(VCPU_OP, 11, vcpu, argument, 0); }

static void handle(struct frame *frame) {
    taken++;
    if (++depth > deepest)
        deepest = depth;
    u64 a = 0, c = 0, d = 0;
    switch (job) {
    case ONLY_COUNT:
        expect("CS in the frame of an NMI, and the event flag", (i64)frame->cs, 0xe030 | 1l << 32);
        break;
    case SEND_ANOTHER:
        job = ONLY_COUNT;
        expect("send_nmi inside an NMI", send_nmi(0, 0), 0);
        expect("NMIs so far: the other waits", (i64)taken, 1);
        break;
    case RETURN_MEANWHILE:
        job = ONLY_COUNT;
        send_nmi(0, 0);
        expect("UD2 inside an NMI", (i64)TRY("ud2", a, c, d), 6);
        expect("NMIs so far: the return from it let the other in", (i64)taken, 2);
        break;
    case LOOK_FOR_EVENTS:
        event_waited = this_vcpu->upcall_pending;
        expect("the event flag inside an NMI", this_vcpu->upcall_mask, 1);
        break;
    }
    depth--;
}

static void expect_nmis(const char *what, u64 wanted) {
    expect(what, (i64)taken, (i64)wanted);
    taken = 0;
}

static i64 set_handler(u64 address) { return hypercall(NMI_OP, 0, address, 0, 0); }

void test_nmi(void) {
    nmi_handler = handle;
    expect("send_nmi with an argument", send_nmi(0, 8), -EINVAL);
    expect("send_nmi to a vCPU that is not there", send_nmi(1, 0), -ENOENT);
    expect("send_nmi without a handler", send_nmi(0, 0), 0);
    expect("nmi_op register", set_handler((u64)nmi_entry), 0);
    expect_nmis("an NMI without a handler, which is lost", 0);
    expect("nmi_op register at no canonical address", set_handler(NOT_CANONICAL), -EINVAL);
    expect("send_nmi", send_nmi(0, 0), 0);
    expect_nmis("an NMI", 1);
    job = SEND_ANOTHER;
    expect("send_nmi", send_nmi(0, 0), 0);
    expect("depth of NMIs that are sent by one", (i64)deepest, 1);
    expect_nmis("two NMIs, one after the other", 2);
    job = RETURN_MEANWHILE;
    expect("send_nmi", send_nmi(0, 0), 0);
    expect("depth of NMIs with a return in between", (i64)deepest, 2);
    expect_nmis("two NMIs, one inside the other", 2);
    /* An NMI comes before an event, whose upcall is made when the handler returns. */
    job = LOOK_FOR_EVENTS;
    this_vcpu->upcall_pending = 1;
    this_vcpu->upcall_mask = 0;
    expect("send_nmi while an event waits", send_nmi(0, 0), 0);
    expect_true("the event behind the NMI", event_waited && !this_vcpu->upcall_pending);
    this_vcpu->upcall_mask = 1;
    expect_nmis("an NMI before an event", 1);
    job = ONLY_COUNT;
    struct trap_info none[] = {{2, 0, 0xe033, 0, 0}};
    hypercall(SET_TRAP_TABLE, (u64)none, 0, 0, 0);
    send_nmi(0, 0);
    expect_nmis("an NMI after an empty list, which changes nothing", 1);
    expect("nmi_op unregister", hypercall(NMI_OP, 1, 0, 0, 0), 0);
    send_nmi(0, 0);
    expect_nmis("an NMI after unregister, which is lost", 0);
    struct trap_info again[] = {{2, TRAP_MASKS_EVENTS, 0xe033, 0, (u64)nmi_entry}, {0, 0, 0, 0, 0}};
    hypercall(SET_TRAP_TABLE, (u64)again, 0, 0, 0);
    send_nmi(0, 0);
    expect_nmis("an NMI by the trap table", 1);
    struct {
        u16 type, flags;
        u32 pad;
        u64 address;
    } callback = {4, 0, 0, (u64)nmi_entry};
    expect("callback_op unregister nmi", hypercall(CALLBACK_OP, 1, (u64)&callback, 0, 0), 0);
    send_nmi(0, 0);
    expect_nmis("an NMI after callback_op unregister", 0);
    expect("callback_op register nmi", hypercall(CALLBACK_OP, 0, (u64)&callback, 0, 0), 0);
    send_nmi(0, 0);
    expect_nmis("an NMI by callback_op", 1);
    hypercall(NMI_OP, 1, 0, 0, 0);
}
