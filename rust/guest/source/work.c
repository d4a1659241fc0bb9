/* The work: what a small operating system does all day, the same source in both builds.
 *
 * Two address spaces with one user program take turns. The program makes system calls, touches pages that are not there
 * and waits for the timer; the kernel answers, maps pages, switches address spaces, counts, and checks every result. */

#include "guest.h"

#define DEFAULT_ROUNDS 100
/* Lets a mistake be seen, and keeps a guest that makes thousands of them from printing them all. */
#define MOST_COMPLAINTS 10

static struct space spaces[2];
static struct space *current;
static void *fresh[2][FRESH_PAGES];
static u64 *clock_page;
static u64 failures;

/* What has been done, for the report and for the checks. */
static volatile struct {
    u64 system_calls, page_faults, space_switches, ticks;
} done;

static void complain(const char *what, u64 got, u64 wanted) {
    if (failures++ < MOST_COMPLAINTS) {
        print("wrong: ");
        print(what);
        print(" is ");
        print_number(got);
        print(", not ");
        print_number(wanted);
        print("\n");
    }
}

static void check(const char *what, u64 got, u64 wanted) {
    if (got != wanted)
        complain(what, got, wanted);
}

/* The sequence that CALL_MIX steps through: an odd multiplier, so no number leads to another's successor. */
static u64 mix(u64 sum, u64 n) { return (sum ^ n) * 0x9e3779b97f4a7c15ul + 1; }

/* --- Called by the machine. --- */

u64 work_system_call(u64 number, u64 first, u64 second) {
    done.system_calls++;
    switch (number) {
    case CALL_EXIT:
        user_finish(first);
    case CALL_MIX:
        return mix(first, second);
    case CALL_WRITE:
        if (first < USER_CODE || first >= USER_END || second > USER_END - first)
            return (u64)-1;
        console_write((const char *)first, second);
        return second;
    case CALL_TIMER:
        timer_arm(first);
        return 0;
    }
    return (u64)-1;
}

/* Bits of the error code (SDM vol. 3, 4.7): the page was there, the access was a write, it was user mode's. */
#define FAULT_PRESENT 1
#define FAULT_WRITE 2
#define FAULT_USER 4

/* Maps a page where the user program may have one, and ends its run if it reaches for the kernel's. False: the kernel has
 * no answer. */
bool work_page_fault(u64 address, u64 error) {
    if (address >= KERNEL_BASE && error & FAULT_USER)
        user_finish(RUN_STOPPED);
    if (!current || address < USER_FRESH || address >= USER_FRESH + FRESH_PAGES * PAGE)
        return false;
    u64 n = (address - USER_FRESH) / PAGE;
    void **page = &fresh[current - spaces][n];
    if (!(error & FAULT_PRESENT)) {
        if (*page)
            return false;
        *page = page_take();
    } else if (!(error & FAULT_WRITE)) {
        return false;
    }
    done.page_faults++;
    page_map(current, USER_FRESH + n * PAGE, *page, true);
    return true;
}

/* An exception of the user program's own making ends its run. */
void work_user_exception(void) { user_finish(RUN_STOPPED); }

void work_tick(void) {
    done.ticks++;
    if (clock_page)
        ++*(volatile u64 *)clock_page;
}

/* --- The work itself. --- */

static void make_space(struct space *space) {
    space_make(space);
    for (u64 offset = 0; offset < (u64)(user_code_end - user_code_start); offset += PAGE)
        page_map(space, USER_CODE + offset, user_code_start + offset, false);
    page_map(space, USER_STACK, page_take(), true);
    page_map(space, USER_CLOCK, clock_page, false);
}

static void go_to(u64 which) {
    current = &spaces[which];
    space_switch(current);
    done.space_switches++;
}

static u64 enter_user(u64 phase, u64 seed) {
    u64 entry = USER_CODE + ((u64)user_main - (u64)user_code_start);
    /* A function expects the stack as a CALL leaves it, 8 bytes off a multiple of 16. */
    return user_run(entry, USER_STACK + PAGE - 8, phase, seed);
}

static void run(u64 phase, u64 seed) {
    u64 sum = enter_user(phase, seed);
    u64 wanted = seed;
    for (u64 n = 0; n < CALLS_PER_RUN; n++)
        wanted = mix(wanted, n);
    check("what the user program computed", sum, wanted);
}

static void give_back(u64 which) {
    pages_unmap(current, USER_FRESH, FRESH_PAGES);
    for (u64 n = 0; n < FRESH_PAGES; n++) {
        if (fresh[which][n])
            page_give(fresh[which][n]);
        else
            complain("the page that was to be given back", n, n);
        fresh[which][n] = 0;
    }
}

/* Both spaces write to the same addresses before either of them looks: only separate pages can keep what they wrote. */
static void do_round(u64 round) {
    for (u64 which = 0; which < 2; which++) {
        go_to(which);
        run(PHASE_TOUCH, round * 2 + which);
        page_protect(current, USER_FRESH);
    }
    for (u64 which = 0; which < 2; which++) {
        go_to(which);
        run(PHASE_CHECK, round * 2 + which);
        give_back(which);
    }
    /* A tick that comes while there is nothing to do. */
    u64 before = done.ticks;
    timer_arm(50);
    while (done.ticks == before)
        wait_for_interrupt();
}

static void report(const char *what, u64 got, u64 wanted) {
    check(what, got, wanted);
    print("did: ");
    print(what);
    print(" ");
    print_number(got);
    print("\n");
}

static void do_work(u64 rounds) {
    clock_page = page_take();
    for (u64 which = 0; which < 2; which++)
        make_space(&spaces[which]);
    for (u64 which = 0; which < 2; which++) {
        go_to(which);
        run(PHASE_HELLO, which);
        check("the end of a run that reached for the kernel's memory", enter_user(PHASE_TRESPASS, 0), RUN_STOPPED);
        check("the end of a run that switched interrupts off", enter_user(PHASE_USURP, 0), RUN_STOPPED);
    }
    for (u64 round = 0; round < rounds; round++)
        do_round(round);
    /* Of each run CALL_EXIT and the calls of its loop; CALL_WRITE of the first two; CALL_TIMER of each first phase. */
    report("system-calls", done.system_calls, (2 + 4 * rounds) * (CALLS_PER_RUN + 1) + 2 + 2 * rounds);
    report("page-faults", done.page_faults, rounds * 2 * (FRESH_PAGES + 1));
    report("space-switches", done.space_switches, 2 + 4 * rounds);
    report("ticks", done.ticks, 3 * rounds);
}

void work(void) {
    machine_start();
    print("trapgate guest, ");
    print(machine_kind);
    print("\n");
    if (command_line_has("abi")) {
        if (!machine_test_interface())
            failures++;
    } else {
        do_work(command_line_number("rounds=", DEFAULT_ROUNDS));
    }
    print(failures ? "result: failure\n" : "result: success\n");
    machine_stop(!failures);
}
