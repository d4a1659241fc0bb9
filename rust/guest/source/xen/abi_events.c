/* The interface's test: event channels, waiting, timers, and the page that a vCPU shares with the hypervisor. */

#include "abi.h"

static i64 channel(u64 command, void *argument) {
    return hypercall(EVENT_CHANNEL_OP, command, (u64)argument, 0, 0);
}

static i64 channel_port(u64 command, u32 port) {
    u32 argument[2] = {port, 0};
    return channel(command, argument);
}

static i64 bind_virq(u32 virq, u32 vcpu, u32 *port) {
    u32 argument[3] = {virq, vcpu, 0};
    i64 result = channel(1, argument);
    if (port)
        *port = argument[2];
    return result;
}

struct status {
    u16 domain, pad;
    u32 port, status, vcpu;
    u32 detail[2];
};

static i64 status_of(u32 port) {
    struct status status = {DOMID_SELF, 0, port, 99, 0, {0}};
    i64 result = channel(5, &status);
    return result ? result : (i64)status.status;
}

static void test_virqs(void) {
    u32 port = 0;
    expect("bind_virq TIMER again", bind_virq(VIRQ_TIMER, 0, 0), -EEXIST);
    expect("bind_virq out of range", bind_virq(24, 0, 0), -EINVAL);
    expect("bind_virq CONSOLE, the control domain's", bind_virq(2, 0, 0), -EBUSY);
    expect("bind_virq for a vCPU that is not there", bind_virq(1, 1, 0), -ENOENT);
    expect("bind_virq DEBUG", bind_virq(1, 0, &port), 0);
    expect("status of a VIRQ's port", status_of(port), 4);
    expect("bind_vcpu of a VIRQ's port", channel(8, (u32[2]){port, 0}), -EINVAL);
    expect("close", channel_port(3, port), 0);
    expect("close again", channel_port(3, port), -EINVAL);
    expect("status of a closed port", status_of(port), 0);
}

static void test_ports(void) {
    struct {
        u16 domain, remote;
        u32 port;
    } unbound = {DOMID_SELF, 0, 0};
    expect("alloc_unbound", channel(6, &unbound), 0);
    expect("status of an unbound port", status_of(unbound.port), 1);
    expect("send to an unbound port", channel_port(4, unbound.port), 0);
    expect("bind_vcpu of an unbound port", channel(8, (u32[2]){unbound.port, 0}), 0);
    expect("bind_vcpu to a vCPU that is not there", channel(8, (u32[2]){unbound.port, 1}), -ENOENT);
    expect("close of an unbound port", channel_port(3, unbound.port), 0);
    expect("send to a closed port", channel_port(4, unbound.port), -EINVAL);
    expect("send to port 0", channel_port(4, 0), -EINVAL);
    expect("send out of range", channel_port(4, 1u << 20), -EINVAL);
    expect("unmask out of range", channel_port(9, 1u << 20), -EINVAL);
    expect("close of port 0", channel_port(3, 0), -EINVAL);
    expect("status of the console's port", status_of(start_info->console_event_channel), 2);
    u32 ipi[2] = {0, 0};
    expect("bind_ipi", channel(7, ipi), 0);
    expect("status of an IPI's port", status_of(ipi[1]), 5);
    expect("send to an IPI's port", channel_port(4, ipi[1]), 0);
    expect_true("an IPI that was sent is pending", take_event(ipi[1]));
    /* What comes while the port is masked waits, and unmasking brings it up. */
    channel_port(4, ipi[1]);
    this_vcpu->upcall_pending = 0, this_vcpu->pending_select = 0;
    expect("unmask of a port that is pending", channel_port(9, ipi[1]), 0);
    expect_true("the event that waited", this_vcpu->upcall_pending && this_vcpu->pending_select == 1ul << ipi[1] / 64);
    take_event(ipi[1]);
    expect("close of an IPI's port", channel_port(3, ipi[1]), 0);
    expect("bind_ipi for a vCPU that is not there", channel(7, (u32[2]){1, 0}), -ENOENT);
    expect_error("bind_interdomain to nobody", channel(0, (u32[3]){77, 1, 0}));
    expect_either("bind_pirq", channel(2, (u32[3]){1, 0, 0}), -EPERM, -EINVAL);
    for (u64 command = 11; command <= 13; command++)
        expect("the FIFO form of events", channel(command, (u64[4]){0}), -ENOSYS);
    expect("event_channel_op unknown", channel(99, (u64[4]){0}), -ENOSYS);
    expect("event_channel_op from nowhere", channel(4, (void *)NOWHERE), -EFAULT);
}

/* A channel of the domain's with itself: both ends are ports of its own. */
static void test_loopback(void) {
    struct {
        u16 domain, remote;
        u32 port;
    } first = {DOMID_SELF, DOMID_SELF, 0};
    struct {
        u16 remote, pad;
        u32 remote_port, port;
    } second = {DOMID_SELF, 0, 0, 0};
    expect("alloc_unbound for itself", channel(6, &first), 0);
    expect("bind_interdomain to port 0", channel(0, &second), -EINVAL);
    second.remote_port = start_info->store_event_channel;
    expect("bind_interdomain to a port that is bound", channel(0, &second), -EINVAL);
    second.remote_port = 1u << 20;
    expect("bind_interdomain out of range", channel(0, &second), -EINVAL);
    second.remote_port = first.port;
    second.remote = 0;
    expect("bind_interdomain to domain 0", channel(0, &second), -EINVAL);
    second.remote = DOMID_SELF;
    expect("bind_interdomain", channel(0, &second), 0);
    expect_true("bind_interdomain sets its own port pending", take_event(second.port));
    expect("status of the port that was unbound", status_of(first.port), 2);
    expect("status of the port that was bound to it", status_of(second.port), 2);
    expect("bind_interdomain again", channel(0, &second), -EINVAL);
    expect("send by the first", channel_port(4, first.port), 0);
    expect_true("an event for the second", take_event(second.port) && !take_event(first.port));
    expect("send by the second", channel_port(4, second.port), 0);
    expect_true("an event for the first", take_event(first.port) && !take_event(second.port));
    expect("bind_vcpu of it", channel(8, (u32[2]){first.port, 0}), 0);
    expect("close of the second", channel_port(3, second.port), 0);
    expect("status of the first then", status_of(first.port), 1);
    expect("send to nobody", channel_port(4, first.port), 0);
    expect("bind_interdomain to it", channel(0, &second), 0);
    expect("close of the first", channel_port(3, first.port), 0);
    expect("close of the second", channel_port(3, second.port), 0);
    expect("bind_interdomain from nowhere", channel(0, (void *)NOWHERE), -EFAULT);
}

/* Closes what the guest has opened. XenStore and the console have ports of the builder's, which are not its to make again. */
static void test_reset(void) {
    u16 domain = 0;
    expect("reset of another domain", channel(10, &domain), -EPERM);
    expect("reset from nowhere", channel(10, (void *)NOWHERE), -EFAULT);
    u32 ipi[2] = {0, 0}, debug = 0;
    channel(7, ipi);
    bind_virq(1, 0, &debug);
    channel_port(4, ipi[1]);
    domain = DOMID_SELF;
    expect("reset", channel(10, &domain), 0);
    expect("status of an IPI's port after a reset", status_of(ipi[1]), 0);
    expect_true("no event of a port that was closed", !take_event(ipi[1]));
    expect("status of a VIRQ's port after a reset", status_of(debug), 0);
    expect("status of the console's port after a reset", status_of(start_info->console_event_channel), 2);
    expect("status of XenStore's port after a reset", status_of(start_info->store_event_channel), 2);
    expect("send to a port after a reset", channel_port(4, ipi[1]), -EINVAL);
    /* Without its timer the guest would wait for ever. */
    timer_bind();
}

static i64 schedule(u64 command, const void *argument) {
    return hypercall(SCHED_OP, command, (u64)argument, 0, 0);
}

static void test_scheduling(void) {
    u32 port = start_info->console_event_channel;
    struct {
        u64 ports;
        u32 count, pad;
        u64 timeout;
    } poll = {(u64)&port, 1, 0, 1};
    expect("yield", schedule(0, 0), 0);
    take_event(port);
    expect("poll until a time that has passed", schedule(3, &poll), 0);
    poll.timeout = system_time() + 100000;
    expect("poll for 100 microseconds", schedule(3, &poll), 0);
    expect_true("poll waits", system_time() >= poll.timeout);
    poll.count = 129;
    expect("poll of too many ports", schedule(3, &poll), -EINVAL);
    expect("poll from nowhere", schedule(3, (void *)NOWHERE), -EFAULT);
    u32 reason = 99;
    expect("shutdown without a reason that there is", schedule(2, &reason), -EINVAL);
    expect("shutdown from nowhere", schedule(2, (void *)NOWHERE), -EFAULT);
    reason = 0;
    expect("shutdown_code", schedule(5, &reason), 0);
    expect_either("watchdog that is off", schedule(6, (u32[2]){0, 0}), -ENOSYS, -EINVAL);
    expect("pin_override", schedule(7, &reason), -EPERM);
    expect("sched_op unknown", schedule(99, &reason), -ENOSYS);
}

static void test_timers(void) {
    expect("set_timer_op off", hypercall(SET_TIMER_OP, 0, 0, 0, 0), 0);
    u64 before = shared_info->pending[0];
    expect("set_timer_op to a time that has passed", hypercall(SET_TIMER_OP, 1, 0, 0, 0), 0);
    /* Events are masked, so the timer's bit stays where it is set until somebody takes it. */
    while (shared_info->pending[0] == before)
        asm volatile("pause");
    expect_true("an event while events are masked", this_vcpu->upcall_pending && this_vcpu->upcall_mask);
}

void test_events(void) {
    test_virqs();
    test_ports();
    test_loopback();
    test_reset();
    test_scheduling();
    test_timers();
}

static i64 vcpu(u64 command, u64 which, const void *argument) {
    return hypercall(VCPU_OP, command, which, (u64)argument, 0);
}

static void test_vcpu_calls(void) {
    static u8 runstate[48];
    u64 area = (u64)runstate;
    u64 short_period = 1000;
    struct {
        u64 at;
        u32 flags, pad;
    } timer = {0, 0, 0};
    expect("is_up", vcpu(3, 0, 0), 1);
    expect("is_up of a vCPU that is not there", vcpu(3, 1, 0), -ENOENT);
    expect("is_up of the last vCPU that a kernel may ask for", vcpu(3, 8191, 0), -ENOENT);
    expect("get_runstate_info", vcpu(4, 0, runstate), 0);
    expect("the runstate", runstate[0], 0);
    expect("get_runstate_info to nowhere", vcpu(4, 0, (void *)NOWHERE), -EFAULT);
    expect("register_runstate_memory_area", vcpu(5, 0, &area), 0);
    expect("set_periodic_timer that is too short", vcpu(6, 0, &short_period), -EINVAL);
    expect("stop_periodic_timer", vcpu(7, 0, 0), 0);
    expect_error("set_singleshot_timer of another vCPU", vcpu(8, 1, &timer));
    expect("set_singleshot_timer from nowhere", vcpu(8, 0, (void *)NOWHERE), -EFAULT);
    expect("stop_singleshot_timer", vcpu(9, 0, 0), 0);
    expect("get_physid", vcpu(12, 0, runstate), -EINVAL);
    expect("register_runstate_phys_area", vcpu(14, 0, &area), -ENOSYS);
    expect("register_vcpu_time_phys_area", vcpu(15, 0, &area), -ENOSYS);
    expect("vcpu_op unknown", vcpu(99, 0, 0), -ENOSYS);
}

/* vcpu_info moves once, to a page that can then never be a table. */
static void test_vcpu_info(void) {
    u8 *page = fresh_page();
    struct {
        u64 frame;
        u32 offset, pad;
    } place = {machine_frame(page), 4, 0};
    expect("register_vcpu_info off its place", vcpu(10, 0, &place), -ENXIO);
    place.offset = PAGE - 32;
    expect("register_vcpu_info across pages", vcpu(10, 0, &place), -ENXIO);
    place.offset = 128;
    place.frame = machine_frame((void *)start_info->pt_base);
    expect("register_vcpu_info in a table", vcpu(10, 0, &place), -EINVAL);
    place.frame = machine_frame(page);
    expect("register_vcpu_info", vcpu(10, 0, &place), 0);
    this_vcpu = (struct vcpu_info *)(page + 128);
    expect("the flag has moved with it", this_vcpu->upcall_mask, 1);
    expect_true("everything is to be looked at", this_vcpu->upcall_pending && this_vcpu->pending_select == ~0ul);
    expect_either("register_vcpu_info again", vcpu(10, 0, &place), -EINVAL, -EBUSY);
    expect("the page made read-only", map_page(page, read_only_entry(page)), 0);
    expect("the page made a table", mmuext(PIN_L1_TABLE, place.frame), -EINVAL);
    expect("the page made writable again", map_page(page, writable_entry(page)), 0);
    /* Events go on to be delivered, by way of the new place. */
    u64 before = shared_info->pending[0];
    expect("set_timer_op", hypercall(SET_TIMER_OP, system_time() + 1000, 0, 0, 0), 0);
    expect("block", schedule(1, 0), 0);
    this_vcpu->upcall_mask = 1;
    expect_true("the handler has taken the event", (shared_info->pending[0] & before & ~shared_info->mask[0]) == 0);
}

void test_vcpu(void) {
    test_vcpu_calls();
    test_vcpu_info();
}
