/* The devices of a PC that the guest needs: serial port, interrupt controllers, timer, power. Each is a handful of ports,
 * and each access to one is something that a hypervisor has to catch and play the device for. */

#include "hardware.h"

/* 16550 UART, first serial port: registers by offset from its base. */
#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_INTERRUPTS (COM1 + 1)
#define UART_FIFO (COM1 + 2)
#define UART_LINE (COM1 + 3)
#define UART_STATUS (COM1 + 5)
#define LINE_8N1 0x03
#define LINE_DIVISOR 0x80
#define STATUS_MAY_SEND 0x20

/* 8259A interrupt controllers: command and data port of the first and the second. */
#define PIC1 0x20
#define PIC2 0xa0
#define PIC_INITIALISE 0x11
#define PIC_8086 0x01
#define PIC_END_OF_INTERRUPT 0x20

/* 8254 timer: channel 0 and the command port. It counts at 1.193182 MHz. */
#define PIT_CHANNEL0 0x40
#define PIT_COMMAND 0x43
#define PIT_CHANNEL0_ONE_SHOT 0x30
#define PIT_HZ 1193182ul

/* ACPI fixed hardware (ACPI 6.4, 4.8.3.2): writing the sleep type of state S5 with SLP_EN switches off. Port and type
 * are what this board's FADT and \_S5 say; a larger kernel would read them there. */
#define PM1A_CONTROL 0x604
#define SLP_ENABLE_S5 0x2000

static void uart_start(void) {
    port_write8(UART_INTERRUPTS, 0);
    port_write8(UART_LINE, LINE_DIVISOR);
    port_write8(UART_DATA, 1);
    port_write8(UART_INTERRUPTS, 0);
    port_write8(UART_LINE, LINE_8N1);
    port_write8(UART_FIFO, 0x07);
}

/* Vectors 0 to 31 are the processor's own, so the controllers are moved to 32 and up; only line 0, the timer, is let in. */
static void pic_start(void) {
    port_write8(PIC1, PIC_INITIALISE);
    port_write8(PIC2, PIC_INITIALISE);
    port_write8(PIC1 + 1, VECTOR_TIMER);
    port_write8(PIC2 + 1, VECTOR_TIMER + 8);
    port_write8(PIC1 + 1, 4); /* the second hangs on line 2 of the first */
    port_write8(PIC2 + 1, 2);
    port_write8(PIC1 + 1, PIC_8086);
    port_write8(PIC2 + 1, PIC_8086);
    port_write8(PIC1 + 1, 0xfe);
    port_write8(PIC2 + 1, 0xff);
}

void devices_start(void) {
    uart_start();
    pic_start();
}

/* Two accesses for each character: is there room, and here it is. */
void console_write(const char *text, u64 length) {
    for (u64 n = 0; n < length; n++) {
        while (!(port_read8(UART_STATUS) & STATUS_MAY_SEND))
            ;
        port_write8(UART_DATA, (u8)text[n]);
    }
}

void timer_arm(u64 microseconds) {
    u64 count = microseconds * PIT_HZ / 1000000;
    port_write8(PIT_COMMAND, PIT_CHANNEL0_ONE_SHOT);
    port_write8(PIT_CHANNEL0, (u8)count);
    port_write8(PIT_CHANNEL0, (u8)(count >> 8));
}

void timer_acknowledge(void) { port_write8(PIC1, PIC_END_OF_INTERRUPT); }

/* How it went has been said on the console: a PC that switches off has no status to leave behind. */
void machine_stop(bool success) {
    (void)success;
    port_write16(PM1A_CONTROL, SLP_ENABLE_S5);
    for (;;)
        asm volatile("cli; hlt");
}
